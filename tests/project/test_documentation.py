"""The code in the README and on the documentation's pages runs, and takes only what packages list as theirs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SimpleGP, assert_close, make_binary, make_kernel

import itergp
from itergp import InputError
from itergp.likelihoods import BernoulliLikelihood, Likelihood
from itergp.operators import KernelOperator
from itergp.posterior.status import Reason
from itergp.solvers import DenseNewton
from itergp.solvers.policies.base import Policy
from itergp.solvers.protocol import Rounds, Solver, State

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = {
    "adding.md": "pandas",
    "bayesian-optimisation.md": "botorch",
    "explaining.md": "matplotlib",
    "instruments.md": "matplotlib",
}
FACES = [
    *("itergp", "itergp.botorch", "itergp.diagnostics", "itergp.learning", "itergp.likelihoods", "itergp.models"),
    *(
        "itergp.explanation",
        "itergp.kernels",
        "itergp.numerics",
        "itergp.objectives",
        "itergp.operators",
        "itergp.parallel",
        "itergp.persistence",
        "itergp.records",
        "itergp.sklearn",
        "itergp.tables",
    ),
    *("itergp.solvers", "itergp.solvers.policies"),
]
GROUND = (
    "itergp.numerics",
    "itergp.parallel",
    "itergp.persistence",
    "itergp.records",
)  # serve the package itself, and speak for themselves
GAP = "\x00"
OUTPUT = re.compile(r"^```text\n(.*?)^```", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text())


def test_the_example_of_the_readme_is_short_and_gives_what_it_shows(capsys):
    pytest.importorskip("sklearn")
    (example,), (shown,) = blocks(ROOT / "README.md"), OUTPUT.findall((ROOT / "README.md").read_text())
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    exec(compile(example, "README.md", "exec"), {"__name__": "page"})
    printed = capsys.readouterr().out
    assert NUMBER.sub("N", printed) == NUMBER.sub("N", shown)
    got, expected = ([float(number) for number in NUMBER.findall(text)] for text in (printed, shown))
    assert got[0] == pytest.approx(expected[0], abs=0.01)  # accuracy
    assert got[1] == pytest.approx(expected[1], abs=3)  # kernel passes, an integer that rounding moves


def names_of(code: str) -> set[str]:
    """What a block takes from this package, as dotted names."""
    found, tree = set(), ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "itergp":
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("itergp.")}
        elif isinstance(node, ast.Attribute) and re.fullmatch(r"itergp(\.\w+)+", ast.unparse(node)):
            found.add(ast.unparse(node))
    return found


def is_exported(name: str) -> bool:
    """Whether every part of a dotted name is listed by the package that it is taken from, down to a class or function."""
    module, parts = itergp, name.split(".")[1:]
    for place, part in enumerate(parts):
        whole = ".".join(["itergp", *parts[: place + 1]])
        if not (part in module.__all__ or whole in FACES):
            return False
        module = importlib.import_module(whole) if whole in FACES else getattr(module, part)
        if not isinstance(module, types.ModuleType):
            return True
    return hasattr(module, "__all__")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_code_takes_only_what_packages_list(page):
    if "botorch" in page.read_text():
        pytest.importorskip("botorch")
    assert not {name for code in blocks(page) for name in names_of(code) if not is_exported(name)}


def test_what_packages_do_not_list_is_noticed():
    code = "import itergp\nfrom itergp.likelihoods.targets import as_floats\nitergp.solvers.demand.Demand\nitergp.models.GP"
    assert {name for name in names_of(code) if not is_exported(name)} == {
        "itergp.likelihoods.targets.as_floats",
        "itergp.solvers.demand",
        "itergp.solvers.demand.Demand",
    }


@pytest.mark.parametrize("face", FACES)
def test_packages_list_what_they_have(face):
    if face.endswith("botorch"):
        pytest.importorskip("botorch")
    module = importlib.import_module(face)
    assert all(hasattr(module, name) for name in module.__all__)
    assert len(set(module.__all__)) == len(module.__all__) > 0


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page)], ids=lambda page: page.name)
def test_code_runs(page, tmp_path, monkeypatch):
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "page", types.ModuleType("page"))  # dataclasses look for their module
    x, y = make_binary(60, dtype=torch.float32)
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=make_kernel()).eval()
    names = {"__name__": "page", "model": model}  # pages that show a detail start from a fitted model
    for code in blocks(page):
        exec(compile(code, str(page), "exec"), names)


# ------------------------------------------------------------------ docstrings
def public_functions() -> dict[str, tuple[str, Any]]:
    """Docstring and code of what packages list, by name: functions, constructors, and methods of their own."""
    found: dict[str, tuple[str, Any]] = {}
    for face in FACES:
        if face.endswith("botorch") and importlib.util.find_spec("botorch") is None:
            continue
        module = importlib.import_module(face)
        for name in module.__all__:
            part, documented = getattr(module, name), inspect.getdoc(getattr(module, name)) or ""
            if inspect.isfunction(part):
                found[f"{face}.{name}"] = (documented, part)
            elif inspect.isclass(part) and part.__module__.startswith("itergp"):
                methods = {key: getattr(value, "__func__", value) for key, value in vars(part).items()}
                found |= {
                    f"{face}.{name}.{key}": (documented if key == "__init__" else inspect.getdoc(value) or "", value)
                    for key, value in methods.items()
                    if inspect.isfunction(value)
                    and value.__module__ == part.__module__
                    and key in {"__init__", key.lstrip("_")}
                }
    return {name: (text, code) for name, (text, code) in found.items() if "<string>" not in code.__code__.co_filename}


PUBLIC = public_functions()


def test_docstrings_name_what_is_raised():
    missing = []
    for name, (text, code) in PUBLIC.items():
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
        raised = {spelled_error(node.exc) for node in ast.walk(tree) if isinstance(node, ast.Raise)}
        missing += [
            (name, error) for error in raised & {"InputError", "SolverError", "ImportError"} if error not in text
        ]
    assert not missing


def spelled_error(node: ast.AST | None) -> str:
    return getattr(getattr(node, "func", node), "id", "")


def test_docstrings_of_functions_and_constructors_name_their_arguments():
    missing = []
    for name, (text, code) in PUBLIC.items():
        if not name.startswith(GROUND) and (name.endswith(".__init__") or name.rpartition(".")[0] in FACES):
            named = [
                p.name
                for p in inspect.signature(code).parameters.values()
                if p.kind.name[:3] != "VAR" and p.name != "self"
            ]
            named = named if len(named) > 1 else []
            missing += [(name, part) for part in named if not re.search(rf"^\s*{part}\b.*:", text, re.MULTILINE)]
    assert not missing


# ---------------------------------------------------------------- parts of one's own
EXTENDING = (ROOT / "docs" / "extending.md").read_text()


def declared(protocol: type) -> set[str]:
    """Members of a protocol."""
    return {name for name, value in vars(protocol).items() if not name.startswith("_") and hasattr(value, "__doc__")}


MEMBERS = {
    "likelihood": Likelihood.__abstractmethods__,
    "operator": KernelOperator.__abstractmethods__,
    "solver": declared(Solver),
    "state": declared(State),
    "rounds": declared(Rounds),
    "policy": declared(Policy),
}


@pytest.mark.parametrize("part", MEMBERS)
def test_the_page_on_extending_names_every_member(part):
    named = set(re.findall(r"`(\w+)(?:\(.*?\))?`", EXTENDING))
    assert len(MEMBERS[part]) > 0
    assert set(MEMBERS[part]) <= named, f"missing: {set(MEMBERS[part]) - named}"


class Narrow:
    """Something of which only some members can be seen."""

    def __init__(self, inside, allowed):
        self.__dict__.update(inside=inside, allowed=allowed)

    def __getattr__(self, name):
        if name.startswith("__") or name not in self.allowed:
            raise AttributeError(f"{name} is not a documented member")
        return getattr(self.inside, name)


class NarrowSolver(Narrow):
    """A solver of which only the documented members can be seen, and of its states too."""

    def __init__(self, inside):
        super().__init__(inside, MEMBERS["solver"])

    def _open(self, state):
        return state.inside if isinstance(state, Narrow) else state

    def init(self, problem, warm_start=None):
        return Narrow(self.inside.init(problem, warm_start), MEMBERS["state"])

    def step(self, problem, state, budget):
        return Narrow(self.inside.step(problem, self._open(state), budget), MEMBERS["state"])

    def status(self, problem, state, budget):
        return self.inside.status(problem, self._open(state), budget)

    @property
    def sequence(self):
        return (self,)

    def finish(self, problem, state, *, final):
        return self.inside.finish(problem, self._open(state), final=final)

    def without_covariance(self):
        return NarrowSolver(self.inside.without_covariance())


for _name in ("loosened", "with_relaxed_tolerance"):  # a copy is narrow too
    if _name in MEMBERS["solver"]:
        setattr(NarrowSolver, _name, lambda self, factor, n=_name: NarrowSolver(getattr(self.inside, n)(factor)))


@pytest.mark.parametrize("approximation", ["laplace", "variational"])
def test_the_documented_members_of_a_solver_are_all_that_is_used(approximation):
    x, y = make_binary(30)
    narrow = SimpleGP(x, y, BernoulliLikelihood(), solver=NarrowSolver(DenseNewton()), approximation=approximation)
    plain = SimpleGP(x, y, BernoulliLikelihood(), solver=DenseNewton(), approximation=approximation)
    with torch.no_grad():
        got, expected = (model.double().eval().predict(x).probs for model in (narrow, plain))
    assert_close(got, expected)
    assert narrow.plan().passes == plain.plan().passes
    narrow.append_train_data(x[:2], y[:2])
    narrow.condition(progress=False)
    assert narrow.solution.trace.explain()
    itergp.fit(narrow, max_iterations=2)


class MatrixOperator(KernelOperator):
    """The one member that an operator must define."""

    def _matmul(self, block):
        return self.kernel(self.inputs).to_dense() @ block.expand(self.num_kernels, *block.shape[-2:])


def test_the_documented_member_of_an_operator_is_enough():
    x, y = make_binary(40)
    own, plain = (
        SimpleGP(x, y, BernoulliLikelihood(), operator=kind).double().eval() for kind in (MatrixOperator, "dense")
    )
    with torch.no_grad():
        assert_close(own.predict(x).probs, plain.predict(x).probs, "posterior")
    assert isinstance(own.solution.operator, MatrixOperator)
    itergp.fit(own, max_iterations=2)
    with pytest.raises(
        InputError, match=r"Got <class 'int'>\. Choose one, or pass a subclass of itergp.operators.Kernel"
    ):
        SimpleGP(x, y, BernoulliLikelihood(), operator=int)


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


# --------------------------------------------------------------------- release
def test_the_version_is_the_same_everywhere():
    citation, changes = (ROOT / "CITATION.cff").read_text(), (ROOT / "CHANGELOG.md").read_text()
    version, day = re.search(r"^## \[(\d\S+)\] - (\S+)$", changes, re.MULTILINE).groups()
    assert version == itergp.__version__
    assert f"\nversion: {version}\ndate-released: {day}\n" in citation


def test_the_page_of_the_benchmarks_is_short():
    assert len((ROOT / "docs" / "benchmarks.md").read_text().splitlines()) <= 150
    assert len((ROOT / "README.md").read_text().splitlines()) <= 85
