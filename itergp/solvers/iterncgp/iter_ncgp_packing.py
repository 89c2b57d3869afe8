"""What a state of ``IterNCGP`` is made of."""

from __future__ import annotations

from typing import Any

from itergp.posterior.problem import Problem
from itergp.solvers.iterncgp.action_buffer import pack_buffer, unpack_buffer
from itergp.solvers.iterncgp.iter_ncgp_state import IterNCGPState
from itergp.solvers.iterncgp.linear_belief import LinearBelief
from itergp.solvers.iterncgp.newton_iterate import NewtonIterate
from itergp.solvers.iterncgp.noise import Noise
from itergp.solvers.packing import Packed, pack_memory, pack_scalars, unpack_memory

_BELIEF = ("factor", "white", "noise_gram")


def pack_state(state: IterNCGPState) -> Packed:
    """Actions, products and small matrices as they are; the noise by its curvature, the iterates by weights and values."""
    belief = state.belief
    arrays = {name: getattr(belief, name) for name in _BELIEF}
    arrays |= {"right": belief.right, "curvature": belief.noise.curvature}
    for name, iterate in (("iterate", state.iterate), ("best", state.best)):
        arrays |= {f"{name}.weights": iterate.weights, f"{name}.latent_values": iterate.latent_values}
    objectives = {"iterate": state.iterate.objective, "best": state.best.objective}
    packed = Packed(arrays, {"state": pack_scalars(state), "objectives": objectives})
    packed.add("actions", pack_buffer(belief.buffer))
    packed.add("memory", pack_memory(state.memory))
    return packed


def unpack_state(
    problem: Problem, packed: Packed, policy: Any, limit: int | None, reorthogonalise: bool
) -> IterNCGPState:
    """The state that ``pack_state`` took apart.

    Args:
        problem: The problem.
        packed: What it was made of.
        policy: The solver's policy, to which the notes belong.
        limit: Most actions that will ever be held.
        reorthogonalise: Whether actions are made orthogonal.
    """
    arrays, values = packed.arrays, packed.values
    buffer = unpack_buffer(problem.mean, limit, packed.part("actions"))
    noise = Noise.from_curvature(arrays["curvature"], problem.mean.dtype)
    belief = LinearBelief(buffer, noise, arrays["right"], reorthogonalise)
    for name in _BELIEF:  # grown action by action, which rounds differently
        setattr(belief, name, arrays[name])
    iterate, best = _iterate(problem, packed, "iterate"), _iterate(problem, packed, "best")
    memory = unpack_memory(packed.part("memory"), policy)
    return IterNCGPState(belief, iterate, best, memory=memory, **values["state"])


def _iterate(problem: Problem, packed: Packed, name: str) -> NewtonIterate:
    latent_values = packed.arrays[f"{name}.latent_values"]
    gradient, curvature = problem.site.derivatives(latent_values.double())
    objective = packed.values["objectives"][name]
    return NewtonIterate(packed.arrays[f"{name}.weights"], latent_values, gradient, curvature, objective)
