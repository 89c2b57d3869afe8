"""The code in the README and on the documentation's pages runs, and the example in the README is short."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from helpers import SimpleGP, make_binary, make_kernel

from itergp.likelihoods import BernoulliLikelihood

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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
    if page.name == "README.md":
        pytest.importorskip("sklearn")
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
