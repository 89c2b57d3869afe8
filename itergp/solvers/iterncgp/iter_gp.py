"""``IterGP``: the probabilistic linear solver of iterative Gaussian processes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from itergp.checks import require_positive
from itergp.errors import InputError
from itergp.operators import KernelOperator
from itergp.posterior.precision import LowRankPrecision
from itergp.solvers.iterncgp.action_buffer import ActionBuffer
from itergp.solvers.iterncgp.linear_belief import LinearBelief
from itergp.solvers.iterncgp.noise import Noise
from itergp.solvers.policies import CG, Policy, View
from itergp.solvers.policies.memory import Memory
from itergp.solvers.policies.mixed import require_policy


@dataclass(frozen=True)
class LinearSolution:
    """What some actions say about ``v = (K + noise)^{-1} b``.

    Attributes:
        weights: ``v = C b`` ``(N, C)``, the representer weights of the posterior mean.
        latent: ``K v`` ``(N, C)``.
        precision: ``C = A (I + A^T K A)^{-1} A^T``, never above ``(K + noise)^{-1}``.
        residual_norms: Relative norms of ``b - (K + noise) v``: before the first action and after each proposal.
        converged: Whether the tolerance was met.
        belief: Actions, products and small matrices.
    """

    weights: Tensor
    latent: Tensor
    precision: LowRankPrecision
    residual_norms: tuple[float, ...]
    converged: bool
    belief: LinearBelief

    @property
    def rank(self) -> int:
        """Number of actions that C holds."""
        return self.precision.rank

    def multiply_precision(self, block: Tensor) -> Tensor:
        """``C`` times a block ``(N, C)``."""
        A = self.precision.actions.flatten(0, 1).double()
        inside = torch.cholesky_solve(A.mT @ block.reshape(-1, 1).double(), self.precision.factor)
        return (A @ inside).reshape(block.shape).to(block)


@dataclass(frozen=True, kw_only=True)
class IterGP:
    """Solves ``(K + noise) v = b`` by actions, and says how uncertain the result is (Wenger et al. 2022, algorithm 1).

    Each action s of the policy is an observation ``s^T b``. Conditioning on it gives weights ``v = C b`` and a low-rank
    precision C that approaches ``(K + noise)^{-1}`` from below, so that the posterior covariance ``k - k C k`` holds both the
    mathematical and the computational uncertainty. ``UnitVectors`` gives the partial Cholesky decomposition, ``CG`` the method
    of conjugate gradients, ``KernelColumns`` inducing points.

    Cost: the policy's kernel products, ``N C R`` operations per action besides, and two ``(N, C, R)`` arrays.

    Args:
        policy: Proposes actions; default ``CG()``.
        max_iterations: Most proposals; default as many as there are unknowns.
        max_rank: Most actions; default none.
        tolerance: Relative residual ``|b - (K + noise) v| / |b|`` at which to stop; default 1e-6.
        reorthogonalise: Make actions orthogonal to earlier ones before they are multiplied. That does not change their
            span; it keeps the small matrices well-conditioned, most of all in float32. Default True.

    Raises:
        InputError: If a setting is not valid.

    Differs from the paper: (1) the recursion for C is kept as a Cholesky factor of ``S^T (K + noise) S``, which is the same in
    exact arithmetic and needs no third ``(N, C, R)`` array; (2) actions can be blocks; (3) actions are reorthogonalised
    unless told otherwise.

    Examples:
        >>> import gpytorch, torch
        >>> from itergp.operators import make_operator
        >>> from itergp.solvers import IterGP
        >>> x = torch.linspace(0, 1, 50, dtype=torch.float64).unsqueeze(-1)
        >>> operator = make_operator(gpytorch.kernels.RBFKernel().double(), x)
        >>> solution = IterGP(tolerance=1e-8).solve(operator, 0.1, torch.sin(6 * x))
        >>> solution.converged, solution.rank < 20
        (True, True)
    """

    policy: Policy = field(default_factory=CG)
    max_iterations: int | None = None
    max_rank: int | None = None
    tolerance: float = 1e-6
    reorthogonalise: bool = True

    def __post_init__(self) -> None:
        """Checks the settings."""
        require_policy(self.policy)
        require_positive("max_iterations", self.max_iterations, integer=True)
        require_positive("max_rank", self.max_rank, integer=True)
        require_positive("tolerance", self.tolerance)

    def solve(
        self,
        operator: KernelOperator,
        noise: Noise | Tensor | float,
        right: Tensor,
        *,
        buffer: ActionBuffer | None = None,
    ) -> LinearSolution:
        """Solves one system.

        Args:
            operator: K.
            noise: A ``Noise``, or its covariance: a variance, variances ``(N,)`` or ``(N, C)``, or blocks ``(N, C, C)``.
            right: b ``(N, C)``.
            buffer: Actions of an earlier solve with the same kernel; they are used at no kernel product, and added to.

        Raises:
            InputError: If the shapes do not fit.
        """
        if right.dim() != 2 or right.shape[0] != operator.num_rows:
            raise InputError(
                f"`right` must have shape ({operator.num_rows}, C). Got {tuple(right.shape)}. Use y.unsqueeze(-1) for one "
                "latent function."
            )
        with torch.no_grad():
            noise = noise if isinstance(noise, Noise) else Noise.from_covariance(noise, right)
            buffer = ActionBuffer(right, self.max_rank) if buffer is None else buffer
            belief = LinearBelief(buffer, noise, right, self.reorthogonalise)
            norms, converged = self._iterate(operator, belief)
            precision, _ = belief.precision()
            return LinearSolution(belief.weights(), belief.latent(), precision, tuple(norms), converged, belief)

    def _iterate(self, operator: KernelOperator, belief: LinearBelief) -> tuple[list[float], bool]:
        scale = max(float(belief.noise.project(belief.right.double()).norm()), torch.finfo(torch.float64).tiny)
        limit = belief.noise.rank if self.max_iterations is None else self.max_iterations
        most = min(belief.noise.rank, self.max_rank or belief.noise.rank)
        norms = [float(belief.residual().norm()) / scale]
        memory = Memory()
        for step in range(limit):
            if norms[-1] <= self.tolerance or belief.rank >= most:
                break
            proposal = self.policy.propose(view(operator, belief, memory, index=step, step=step))
            if proposal is None:
                break
            belief.observe(operator, proposal, most - belief.rank)
            norms.append(float(belief.residual().norm()) / scale)
        return norms, norms[-1] <= self.tolerance


def view(
    operator: KernelOperator,
    belief: LinearBelief,
    memory: Memory,
    *,
    index: int,
    step: int,
    newton_step: int = 0,
    mean: Tensor | None = None,
) -> View:
    """What a policy sees of a belief."""
    latent = belief.latent()
    return View(
        gradient=belief.gradient(),
        curvature=belief.noise.curvature,
        weights=belief.weights(),
        latent_values=latent if mean is None else mean + latent,
        operator=operator,
        index=index,
        step=step,
        newton_step=newton_step,
        belief=belief,
        memory=memory,
    )
