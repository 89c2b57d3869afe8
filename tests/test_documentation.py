"""The code in the README and on the documentation's pages runs, and the example in the README is short."""

from __future__ import annotations

import ast
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from helpers import SimpleGP, make_binary, make_kernel

from itergp.likelihoods import BernoulliLikelihood
from itergp.solvers.status import Reason

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS = {"README.md": "sklearn", "bayesian-optimisation.md": "botorch", "instruments.md": "matplotlib"}
GAP = "\x00"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text())


def test_there_is_code_to_run():
    assert sum(len(blocks(page)) for page in PAGES) >= 4


def test_the_example_is_complete_in_thirty_lines():
    (example,) = blocks(ROOT / "README.md")
    assert len([line for line in example.splitlines() if line.strip()]) <= 30


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_code_runs(page, capsys, tmp_path, monkeypatch):
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "page", types.ModuleType("page"))  # dataclasses look for their module
    x, y = make_binary(60, dtype=torch.float32)
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=make_kernel()).eval()
    names = {"__name__": "page", "model": model}  # pages that show a detail start from a fitted model
    for code in blocks(page):
        exec(compile(code, str(page), "exec"), names)
    if page.name == "README.md":
        accuracy = float(re.search(r"accuracy (\S+)", capsys.readouterr().out).group(1))
        assert accuracy > 0.9


# -------------------------------------------------------------- troubleshooting
ENTRY = re.compile(r"^- \*\*(.+?)\*\*", re.DOTALL | re.MULTILINE)


def entries() -> list[str]:
    """The messages that the page on troubleshooting knows."""
    return [" ".join(entry.split()) for entry in ENTRY.findall((ROOT / "docs" / "troubleshooting.md").read_text())]


def spelled(node: ast.AST) -> str:
    """The text of a message in the source, with a gap where a value goes."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(spelled(part) for part in node.values)
    return GAP


def messages(*kinds: str) -> list[str]:
    """First words of what the package raises or warns of."""
    found = []
    for path in sorted((ROOT / "itergp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                category = getattr(node.args[1], "id", "") if name == "warn" and len(node.args) > 1 else name
                if category in kinds:
                    found.append(spelled(node.args[0]))
    return found


def begins(message: str, entry: str) -> bool:
    """Whether an entry is how a message begins, four words of it or more."""
    head = message.split(GAP)[0]
    if not (entry.startswith(head) or head.startswith(entry.rstrip("."))):
        return False
    words = message.split()
    length = min(len(words), len(entry.split()))
    for count in range(min(4, length), min(len(words), len(entry.split()) + 4) + 1):
        pattern = ".+?".join(map(re.escape, " ".join(words[:count]).split(GAP)))
        if re.fullmatch(pattern, entry.rstrip(".")) or re.fullmatch(pattern, entry):
            return True
    return False


@pytest.mark.parametrize("reason", Reason)
def test_every_status_has_an_entry(reason):
    assert reason.value in entries()
    assert f"(`{reason.name}`)" in (ROOT / "docs" / "troubleshooting.md").read_text()


@pytest.mark.parametrize("message", messages("ItergpWarning"), ids=lambda text: text.replace(GAP, "...")[:40])
def test_every_warning_has_an_entry(message):
    assert any(begins(message, entry) for entry in entries()), message


def test_every_entry_is_a_message():
    assert begins(f"`{GAP}` must be finite. Got {GAP}.", "`train_inputs` must be finite.")
    assert not begins(f"`{GAP}` must be finite. Got {GAP}.", "`train_inputs` must be large.")
    known = messages("InputError", "SolverError", "ItergpWarning", "ImportError", "NotImplementedError")
    assert len(known) > 150
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    others = {reason.value for reason in Reason} | {
        " ".join(e.split()) for e in ENTRY.findall(text.split("## Slow")[1])
    }
    # Messages that functions put together begin with what they were given.
    composed = ("forward must return", "`X` must be numbers")
    stale = [
        entry
        for entry in entries()
        if entry not in others and not entry.startswith(composed) and not any(begins(m, entry) for m in known)
    ]
    assert not stale
