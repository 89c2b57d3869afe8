"""What is saved comes back: the same numbers, in the same places and the same order of memory, and nothing else."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gpytorch
import pytest
import torch
from torch import Tensor

import itergp
from itergp.likelihoods import BernoulliLikelihood
from itergp.models import GP
from itergp.operators import BlockedOperator
from itergp.persistence import DERIVED, CheckpointFile, StateDict, files, from_state, to_state
from itergp.solvers.policies import UnitVectors
from itergp.solvers.policies.memory import Memory

if TYPE_CHECKING:
    from decimal import Decimal


class Colour(Enum):
    RED = "the colour red"


@dataclass(frozen=True)
class Part:
    values: Tensor
    size: int = 1


@dataclass(frozen=True)
class Larger(Part):
    more: Tensor | None = None
    count: int = field(kw_only=True)


@dataclass
class Whole:
    weights: Tensor
    colour: Colour
    number: float
    missing: Part | None
    part: Part | Larger
    pairs: list[tuple[float, list[Tensor]]]
    numbers: tuple[float, ...]
    named: dict[str, Part]
    notes: dict[str, Any]
    late: float = field(init=False, default=0.0)
    cache: object = field(init=False, default=None, metadata=DERIVED)


@dataclass(frozen=True)
class Rebuilt:
    weights: Tensor
    scale: float
    double: Tensor = field(metadata=DERIVED)

    @classmethod
    def rebuild(cls, context: float, **fields: Any) -> Rebuilt:
        return cls(double=context * fields["weights"], **fields)


def make_whole() -> Whole:
    return Whole(
        torch.arange(3.0),
        Colour.RED,
        math.inf,
        None,
        Larger(torch.ones(2), 3, torch.zeros(1), count=7),
        [(0.1, [torch.ones(1), torch.zeros(0, 2)]), (-math.inf, [])],
        (1.0, 2.5),
        {"a": Part(torch.ones(1)), "a.b": Part(torch.full((2,), 5.0), 9)},
        {"x.y": [None, 3, torch.tensor([4])], "x": torch.tensor(2.0), "empty": {}},
    )


def stored(state: StateDict) -> StateDict:
    """As it comes out of a file: values through JSON that knows no infinity."""
    return StateDict(dict(state.arrays), json.loads(json.dumps(state.values, allow_nan=False)))


def test_objects_come_back_from_their_fields():
    whole = make_whole()
    whole.late, whole.cache = math.nan, object()
    back = from_state(Whole, stored(to_state(whole)))
    assert torch.equal(back.weights, whole.weights)
    assert (back.colour, back.number, back.missing, back.numbers) == (Colour.RED, math.inf, None, (1.0, 2.5))
    assert math.isnan(back.late)  # no argument of the constructor
    assert back.cache is None
    assert type(back.part) is Larger
    assert (back.part.size, back.part.count) == (3, 7)
    assert torch.equal(back.part.more, torch.zeros(1))
    assert [value for value, _ in back.pairs] == [0.1, -math.inf]
    assert [tensor.shape for tensor in back.pairs[0][1]] == [(1,), (0, 2)]
    assert {name: (part.size, part.values.numel()) for name, part in back.named.items()} == {"a": (1, 1), "a.b": (9, 2)}
    assert back.notes["x.y"][:2] == [None, 3]
    assert (int(back.notes["x.y"][2]), float(back.notes["x"]), back.notes["empty"]) == (4, 2.0, {})


def test_what_is_derived_is_made_again():
    state = to_state(Rebuilt(torch.ones(2), 3.0, torch.zeros(2)))
    assert [*state.arrays] == ["weights"]
    assert from_state(Rebuilt, stored(state), 4.0).double.tolist() == [4.0, 4.0]


def test_sections_are_apart():
    state = StateDict({"a": torch.ones(1)}, {"b": 1})
    state.add_section("inner", StateDict({"a": torch.zeros(2)}, {"b": 2}))
    state.add_section("inn", StateDict({}, {"b": 3}))
    assert (state.section("inner").values, state.section("inn").values, state.values["b"]) == ({"b": 2}, {"b": 3}, 1)
    assert state.section("inner").arrays["a"].shape == (2,)
    assert state.section("inn").arrays == {}


@dataclass
class Odd:
    name: str
    function: Any
    part: Part | None = None


ODD = {
    "a function": (Odd("a", lambda: None), r"Got function as `function` of Odd\. Annotate its class.*DERIVED"),
    "other keys": (Odd("a", {3: 4}), r"Got dict as `function` of Odd"),
    "not annotated": (Odd("a", Part(torch.ones(1))), r"Got Part as `function` of Odd"),
    "an enum": (Odd("a", Colour.RED), r"Got Colour as `function` of Odd"),
    "inside": (Odd("a", [{"b": Part(torch.ones(1))}]), r"Got Part as `function\.0\.b` of Odd"),
    "a subclass": (Odd("a", 1, Larger(torch.ones(1), count=2)), r"Got Larger as `part` of Odd"),
    "one name": (
        Odd("a", {"b.c": 1, "b": {"c": torch.ones(1)}}),
        r"names of their own\. Got two called `function\.b\.c`",
    ),
}


@pytest.mark.parametrize(("value", "message"), ODD.values(), ids=ODD)
def test_what_would_not_come_back_is_refused(value, message):
    with pytest.raises(itergp.InputError, match=message):
        to_state(value)


def test_a_state_that_lacks_a_field_is_refused():
    with pytest.raises(itergp.InputError, match=r"state of a Part must have every field\. Got none called values"):
        from_state(Part, StateDict({}, {"size": 3}))


@dataclass
class Unknown:
    price: Decimal


def test_annotations_that_cannot_be_found_are_refused():
    with pytest.raises(itergp.InputError, match=r"annotations of Unknown must name.*Got 'Decimal'.*TYPE_CHECKING"):
        from_state(Unknown, StateDict({}, {"price": 3}))


# --------------------------------------------------------------------------------- notes
def test_notes_are_found_by_equal_settings():
    memory = Memory()
    memory[UnitVectors(rows=3)] = [torch.arange(2), 5, None]
    memory["inputs"] = torch.ones(2)
    memory["a handle"] = object()
    back = from_state(Memory, stored(to_state(memory)))
    assert UnitVectors(rows=4) not in back
    assert "a handle" not in back  # it is made again
    assert UnitVectors(rows=3) in back
    assert back[UnitVectors(rows=3)][0].tolist() == [0, 1]
    assert back[UnitVectors(rows=3)] is back.setdefault(UnitVectors(rows=3), [])  # policies write into their notes
    assert [*to_state(back).values] == ["inputs", repr(UnitVectors(rows=3))]  # also those that nobody looked at
    back["inputs"] = torch.zeros(1)
    assert back["inputs"].shape == (1,)


# --------------------------------------------------------------------------------- files
def make_file(path, **changes):
    about = {"every": 0.0, "task": "condition", "identity": {"a": "b"}, "device": torch.device("cpu")}
    return CheckpointFile(path, **(about | changes))


def test_arrays_come_back_in_their_order_of_memory(tmp_path):
    block = torch.randn(4, 3, 5)
    arrays = {
        "plain": block,
        "turned": block.mT,
        "moved": block.movedim(0, -1),
        "part": block[:, :2],
        "one": block[0, 0],
    }
    path = tmp_path / "run.safetensors"
    assert make_file(path).save(StateDict(arrays))
    for name, value in make_file(path).checkpoint_state.arrays.items():
        assert torch.equal(value, arrays[name])
        order = [sorted(range(v.dim()), key=lambda axis, v=v: -v.stride(axis)) for v in (value, arrays[name])]
        assert order[0] == order[1], name


def test_a_checkpoint_of_another_format_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(files, "FORMAT_VERSION", 1)
        make_file(path).save(StateDict())
    with pytest.raises(
        itergp.InputError,
        match=r"must be of file format 2, which itergp .* writes\. Got .* of format 1.*Delete the checkpoint",
    ):
        make_file(path)


def test_a_model_of_the_first_format_is_read(monkeypatch):
    x = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64).unsqueeze(-1)

    def make():
        return GP(x, (x[:, 0] > 0.2).double(), BernoulliLikelihood(), kernel=gpytorch.kernels.RBFKernel()).double()

    model, expected = make(), make()
    expected.condition()
    with monkeypatch.context() as patch:
        patch.setattr(BlockedOperator, "_matmul", lambda *_: pytest.fail("a kernel pass"))
        model.load(Path(__file__).parent / "saved" / "format_1.safetensors")
        solution = model.solution
    torch.testing.assert_close(solution.latent_values, expected.solution.latent_values, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(model.predict(x).probs, expected.predict(x).probs, rtol=0.0, atol=1e-6)
    assert solution.certificate.norm_squared == pytest.approx(7.7e-08, rel=0.01)
    assert (solution.status.reason, solution.kernel_passes) == (expected.solution.status.reason, 7)
    assert solution.trace.explain().limit == expected.solution.trace.explain().limit


def test_the_former_name_of_a_state_still_works():
    with pytest.warns(DeprecationWarning, match=r"itergp\.solvers\.Packed is itergp\.persistence\.StateDict now"):
        assert itergp.solvers.Packed is StateDict
