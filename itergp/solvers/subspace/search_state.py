"""``SearchState``: what the states of solvers within a search space say of it and of the iterate there."""

from __future__ import annotations

from itergp.posterior.solution import is_finite
from itergp.solvers.protocol import BaseState
from itergp.solvers.subspace.joint_space import JointSpace
from itergp.solvers.subspace.newton import Iterate
from itergp.solvers.subspace.search_space import SearchSpace
from itergp.solvers.subspace.support_space import JointSupportSpace, SupportSpace


class SearchState(BaseState):
    """A state with an iterate in a search space; a dataclass gives the fields ``space`` and ``iterate``."""

    space: SearchSpace | JointSpace | SupportSpace | JointSupportSpace
    iterate: Iterate

    @property
    def objective(self) -> float:
        """Psi."""
        return self.iterate.objective

    @property
    def rank(self) -> int:
        """Directions in the space."""
        return self.space.rank

    @property
    def newton_steps(self) -> int:
        """Newton steps within the space in the last step."""
        return self.iterate.steps

    @property
    def step_length(self) -> float:
        """Smallest step length in the last step."""
        return self.iterate.step_length

    @property
    def finite(self) -> bool:
        """Whether the iterate is finite."""
        at = self.iterate
        return is_finite(at.latent_values, at.gradient, at.curvature) and self.objective < float("inf")
