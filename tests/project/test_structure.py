"""How the package is built: which way imports point, whose parts are whose, how long functions are, what is written once."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import itergp

ROOT = Path(itergp.__file__).parent

# Uses of another object's underscored parts that are left, and functions of more than 50 lines. Lower them when they fall.
MOST_FOREIGN_PARTS, MOST_LONG_FUNCTIONS = 1, 0
# What each room may import from the package, for the rooms at the ground.
GROUND = {
    "records": set(),
    "parallel": set(),
    "numerics": set(),
    "tables": set(),
    "kernels": set(),
    "diagnostics": {"records"},
    "persistence": {"parallel"},
}
FOR_ALL = {"errors", "checks", "_version"}


@cache
def modules() -> dict[str, ast.Module]:
    """The syntax of every module by its name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join((ROOT.name, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


@cache
def imports() -> dict[str, set[str]]:
    """Modules of the package that each of them imports anywhere, for type checkers too."""
    found: dict[str, set[str]] = {}
    for name, tree in modules().items():
        targets = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} imports relatively"
                wholes = [f"{node.module}.{alias.name}" for alias in node.names]
                targets |= {whole if whole in modules() else str(node.module) for whole in wholes}
            elif isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
        found[name] = (targets & modules().keys()) - {name}
    return found


def reachable(start: str) -> set[str]:
    """Modules that a module imports, and that those import."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = imports()[waiting.pop()] - seen
        seen |= new
        waiting.extend(new)
    return seen


def circles() -> list[set[str]]:
    """Groups of modules each of which imports every other, perhaps through further ones."""
    reached = {name: reachable(name) for name in modules()}
    groups = []
    for name in modules():
        group = {other for other in reached[name] if name in reached[other]}
        if group and group not in groups:
            groups.append(group)
    return groups


def test_no_circle_of_imports():
    assert [sorted(circle) for circle in circles()] == []


@pytest.mark.parametrize("room", GROUND)
def test_the_ground_imports_nothing_above_it(room):
    allowed = GROUND[room] | FOR_ALL | {room}
    own = [name for name in modules() if name.split(".")[1:2] == [room]]
    assert own
    for name in own:
        rooms = {target.split(".")[1] for target in imports()[name] if "." in target}
        assert rooms <= allowed, f"{name} imports {sorted(rooms - allowed)}"


@pytest.mark.parametrize(
    ("room", "above"), [("posterior", {"solvers", "models"}), ("solvers", {"models", "objectives"})]
)
def test_what_is_known_knows_nothing_of_who_finds_it(room, above):
    for name in modules():
        if name.split(".")[1:2] == [room]:
            rooms = {target.split(".")[1] for target in imports()[name] if "." in target}
            assert not rooms & above, f"{name} imports {sorted(rooms & above)}"


@pytest.mark.parametrize("room", ["solvers", "posterior", "operators", "likelihoods"])
def test_what_computes_draws_nothing(room):
    for name, tree in modules().items():
        if name.split(".")[1:2] == [room]:
            named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            named |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert not {whole for whole in named if whole.startswith(("rich", "matplotlib", "itergp.diagnostics"))}


# ------------------------------------------------------------------ whose parts are whose
def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.Module) -> set[str]:
    """Names that a module gives to functions, classes, variables and attributes."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            names.add(node.attr)
    return names


def is_own(node: ast.expr) -> bool:
    """Whether this is ``self``, ``cls`` or ``super()``."""
    node = node.func if isinstance(node, ast.Call) else node
    return isinstance(node, ast.Name) and node.id in ("self", "cls", "super")


def foreign_parts() -> Iterator[str]:
    """Uses of parts that another file of the package gives a name with an underscore; other libraries' do not count."""
    own = {name: defined(tree) for name, tree in modules().items()}
    package = set().union(*own.values())
    for name, tree in modules().items():
        theirs = {part for part in package - own[name] if is_private(part)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in theirs and not is_own(node.value):
                yield f"{name}, line {node.lineno}: {ast.unparse(node)}"


def test_ever_fewer_underscored_parts_are_used_by_others():
    found = [*foreign_parts()]
    assert len(found) <= MOST_FOREIGN_PARTS, "\n".join(found)


# --------------------------------------------------------------- length, and what is there once
def lengths() -> Iterator[tuple[int, str]]:
    """Lines of every function without its docstring, and its name."""
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
                yield node.end_lineno - node.lineno + 1 - docstring, f"{name}.{node.name}"


def test_functions_are_short():
    assert [name for lines, name in lengths() if lines > 80] == []
    long = [name for lines, name in lengths() if lines > 50]
    assert len(long) <= MOST_LONG_FUNCTIONS, long


def calls(attribute: str) -> list[str]:
    """Modules that call a function of some library by its name, once per call."""
    return [
        name
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == attribute
    ]


def test_small_algebra_is_written_once():
    assert [name for name in calls("cholesky_ex") if name != "itergp.numerics.cholesky"] == []
    elsewhere = [name for name in calls("eigh") if name != "itergp.numerics.spectral"]
    assert len(elsewhere) <= 3, elsewhere


def test_one_progress_bar():
    assert calls("add_task") == ["itergp.diagnostics.progress"]


# ------------------------------------------------------------------------ what solvers may do
def solver_modules() -> dict[str, ast.Module]:
    """The modules of the room of solvers."""
    return {name: tree for name, tree in modules().items() if name.startswith("itergp.solvers")}


def test_solvers_read_no_clock():
    """The driver hands them a budget: only that, and what records it, know the time."""
    read = {
        name
        for name, tree in solver_modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import) and any(alias.name == "time" for alias in node.names)
    }
    assert read == {"itergp.solvers.run.budget", "itergp.solvers.run.recording"}


def test_a_solver_is_asked_for_what_its_protocol_names():
    """No guessing whether a solver, a state or a policy has a member: ``hasattr`` is for checks of arguments alone."""
    for name, tree in solver_modules().items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("getattr", "hasattr")
            ):
                optional = node.func.id == "hasattr" or len(node.args) > 2
                checks = name in ("itergp.solvers.protocol", "itergp.solvers.policies.mixed")
                assert checks or not optional, f"{name}, line {node.lineno}: {ast.unparse(node)}"


def test_families_of_solvers_do_not_know_each_other():
    for first, second in (("subspace", "iterncgp"), ("iterncgp", "subspace")):
        for name in solver_modules():
            if name.startswith(f"itergp.solvers.{first}."):
                others = {target for target in imports()[name] if target.startswith(f"itergp.solvers.{second}.")}
                assert not others, f"{name} imports {sorted(others)}"


def test_parts_are_asked_and_not_recognised():
    """What differs between kinds of spaces, policies, operators, solvers and likelihoods is a question to the object."""
    kinds = {"SupportSpace", "UnitVectors", "LinearTimeNewton", "KeOpsOperator", "CategoricalLikelihood", "LaplaceSite"}
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                named = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                found = isinstance(node.args[1], ast.Name | ast.Tuple) and named & kinds
                assert not found or is_assertion(tree, node), f"{name}: {ast.unparse(node)}"


def test_only_solvers_look_into_a_warm_start():
    """What one solve leaves for the next is handed on unopened; that of a solution may be shown."""
    for name, tree in modules().items():
        if name.startswith("itergp.solvers.") or name == "itergp.posterior.solution":
            continue
        for node in ast.walk(tree):
            opened = isinstance(node, ast.Attribute) and (
                node.attr in ("space", "coordinates")
                or ast.unparse(node).endswith(("solution.actions", "earlier.actions"))
                or (isinstance(node.value, ast.Attribute) and node.value.attr == "warm_start")
            )
            assert not opened, f"{name}, line {node.lineno}: {ast.unparse(node)}"


def is_assertion(tree: ast.Module, call: ast.Call) -> bool:
    """Whether a call is all that is asserted, for a type checker."""
    return any(isinstance(node, ast.Assert) and node.test is call for node in ast.walk(tree))


# ------------------------------------------------------------------------------------------------ what is promised
def test_the_oldest_versions_tried_are_those_promised():
    """Of all that ``make oldest`` installs; PyTorch apart, of which it takes the present one."""
    folder = Path(__file__).parents[2]
    lines = (folder / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    tried = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = (folder / "pyproject.toml").read_text(encoding="utf-8")
    untested, _, rest = project.partition("\nbench = [")
    tested = untested + rest[rest.index("\ntest = [") : rest.index("\ndocs = [")]
    promised = {name.replace("_", "-"): bound for name, bound in re.findall(r'"([\w-]+)>=([\d.]+)', tested)}
    del promised["setuptools"], promised["torch"], tried["torch"]

    def number(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.removesuffix(".0").removesuffix(".0").split("."))

    assert {name: number(bound) for name, bound in tried.items()} == {n: number(b) for n, b in promised.items()}
