"""What a file of leaves holds: the model, the tree, and the posterior of each leaf."""

from __future__ import annotations

import os
from typing import Any

from itergp.errors import InputError
from itergp.models.checkpointing import read_solution, solution_state
from itergp.models.leaf_posteriors import LeafPosteriors, LeafTask
from itergp.models.nonconjugate_gp import NonConjugateGP
from itergp.models.saving import has_prior, model_state, restore_model
from itergp.numerics.median_tree import MedianTree
from itergp.persistence import StateDict, from_state, to_state
from itergp.persistence.files import read_file, write_file

_KIND, _LEAVES = "leaves", "leaves"


def save_leaves(leaves: LeafPosteriors, path: str | os.PathLike[str]) -> None:
    """Writes leaves to one file; see ``LeafGP.save``."""
    task = leaves.task
    if task.partition.sharded:
        raise InputError(
            "Leaves are saved where one process has all of them. Got leaves divided among "
            f"{task.partition.num_processes}. Pass condition(checkpoint=...) a folder that all see: one process that "
            "conditions with it finds every leaf there, and can save."
        )
    saved, own = model_state(task.model), StateDict(values={"settings": task.settings})
    own.add_section("tree", to_state(task.tree))
    for number, (rows, leaf) in enumerate(zip(task.rows, leaves.own, strict=True)):
        own.arrays[f"rows.{number}"] = rows
        own.add_section(f"leaf {number}", solution_state(leaf.solution))
    saved.values["prior"] = task.key.prior
    saved.add_section(_LEAVES, own)
    write_file(path, saved.arrays, {"kind": _KIND, **saved.values})


def load_leaves(model: NonConjugateGP, path: str | os.PathLike[str]) -> tuple[dict[str, Any], LeafPosteriors | None]:
    """Settings and posteriors from a file, the latter None where the model has another prior; see ``LeafGP.load``."""
    tensors, about = read_file(path)
    if about.get("kind") != _KIND:
        raise InputError(
            f"`path` must be a file that LeafGP.save wrote. Got {str(path)!r}, a saved {about.get('kind')}. Load it as what it "
            "was saved from."
        )
    saved = StateDict(tensors, about)
    restore_model(model, saved)
    own = saved.section(_LEAVES).to(model.held_data.inputs[0].device)
    settings = own.values["settings"]
    if not has_prior(model, about):
        return settings, None
    tree = from_state(MedianTree, own.section("tree"))
    rows = tuple(own.arrays[f"rows.{number}"] for number in range(tree.num_leaves))
    task, found = LeafTask.of(model, settings, (tree, rows)), []
    for number in task.own:
        problem = task.problem(number)
        solution = read_solution(own.section(f"leaf {number}"), problem.operator.device)
        if solution.representer_weights.shape != problem.mean.shape:
            raise InputError(
                f"The model must be built as the saved one was. Got leaf {number + 1} with {problem.mean.shape[0]:,} distinct "
                f"rows, where the file has {solution.representer_weights.shape[0]:,}. Pass the same share_equal_rows."
            )
        found.append(task.conditioned(problem, solution))
    return settings, LeafPosteriors.of(task, tuple(found))
