"""``Likelihood``: what one observation says about its latent values.

Every likelihood is a ``gpytorch.likelihoods.Likelihood`` and adds the local calculus that the solvers need.
Throughout, ``f`` has shape ``(..., N, C)``: rows, then latent functions; leading dimensions are samples.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import gpytorch
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from torch import Tensor
from torch.distributions import Distribution

from itergp.errors import InputError
from itergp.likelihoods.quadrature import gauss_hermite, node_covariance, trapezoid
from itergp.likelihoods.sampled import Averages, antithetic_nodes, by_width, num_pairs
from itergp.numerics.blocks import Root, psd_root

_NUM_NODES = 20
_CHUNK_ROWS = 8192
_CHUNK_VALUES = 2**16  # curvatures at once
_FEW_NODES_REACH = 1.5  # deviations in widths of a likelihood up to which few nodes are right to 1e-5
_MOST_LEVELS = 9  # of twice as many nodes each, up to some 18,000


Observed = Literal["label", "level", "count", "real", "positive", "share"]


class Likelihood(gpytorch.likelihoods.Likelihood):
    """Base class of the likelihoods: log-density, gradient, curvature and predictive distribution.

    Attributes:
        num_latents: Number C of latent functions per row.
        log_concave: Whether ``log p(y | f)`` is concave in ``f``, which the certificate needs.
        quadratic: Whether ``log p(y | f)`` is quadratic in ``f``; Laplace and variational posteriors then agree.
        curvature: ``"hessian"`` when W is the negative Hessian, else the positive semi-definite stand-in
            (``"fisher"``, ``"gauss-newton"``, ``"complete-data"`` or ``"absolute hessian"``).
        majorises: Whether W is that of a quadratic which lies above the negative log-density and touches it at f, so that steps
            descend from anywhere; covariances are then conditioned with another curvature, ``expected_curvature``.
        latent_width: Distance in f over which the derivatives change, a third of that of their nearest singularity in the
            complex plane: expectations over one function have nodes as near to one another.
        bounded_curvature: Whether W stays below a bound that is small in the units of f, wherever f is; variational
            posteriors then need no care for curvature that is far away.
        bounded_density: Whether ``p(y | f)`` stays below a bound, wherever f is. Where it does not, a mode may be a spike at a
            single row, or there is none, and no variational posterior is begun from it.
        smooth: Whether ``log p(y | f)`` has second derivatives in ``f``; modes sit on kinks, and are found slowly.
        exchangeable: Whether rows share one density, so that any subset of them can be looked at alone.
        observes: What an observation is: a ``"label"`` of a class, an ordered ``"level"``, a ``"count"``, a ``"real"`` or
            ``"positive"`` number, or a ``"share"`` of one.
        distinct_latents: Whether the latent functions mean different things, so that each wants a kernel of its own.
        varying_noise: Whether a latent function is the scale of the noise of real targets, which then varies with the inputs.
        softmax: Whether ``p(y | f)`` is the softmax of the latent functions themselves, whose curvature has a structure.
        masks_targets: Whether targets stay NaN where they are missing, and the likelihood leaves them out output by output.
        accepts_missing: Whether targets may be missing without ``missing_targets`` saying so.
        predictive_options: Keywords of ``predictive`` that say something about new rows, such as their exposure.
    """

    num_latents: int = 1
    log_concave: bool = True
    quadratic: ClassVar[bool] = False
    latent_width: float = 1.0
    bounded_curvature: bool = False
    bounded_density: bool = True
    smooth: ClassVar[bool] = True
    exchangeable: ClassVar[bool] = True
    observes: ClassVar[Observed] = "real"
    distinct_latents: ClassVar[bool] = False
    varying_noise: ClassVar[bool] = False
    softmax: ClassVar[bool] = False
    masks_targets: ClassVar[bool] = False
    accepts_missing: ClassVar[bool] = False
    curvature: str = "hessian"
    majorises: bool = False
    predictive_options: ClassVar[tuple[str, ...]] = ()

    @property
    def has_smooth_mode(self) -> bool:
        """Whether there is a mode that Newton's method finds: where densities have a bound and no kinks."""
        return self.bounded_density and self.smooth

    @property
    def raises_bound(self) -> bool:
        """Whether natural gradients with W as the curvature raise the evidence lower bound: where W is no stand-in."""
        return self.curvature == "hessian"

    # ------------------------------------------------------------ the calculus
    @abstractmethod
    def log_density(self, f: Tensor, targets: Tensor) -> Tensor:
        """``log p(y_n | f_n)``, with all normalising constants.

        Args:
            f: Latent values ``(..., N, C)``.
            targets: Validated targets, N rows.

        Returns:
            ``(..., N)``.
        """

    @abstractmethod
    def derivatives(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of the log-density and curvature, its negative Hessian or a positive semi-definite stand-in.

        Args:
            f: Latent values ``(..., N, C)``.
            targets: Validated targets ``(N,)``.

        Returns:
            g ``(..., N, C)`` and W ``(..., N, C, C)``.
        """

    def covariance_curvature(self, f: Tensor, targets: Tensor) -> Tensor:
        """Curvature ``(N, C, C)`` at f that a covariance is conditioned with: that of ``derivatives`` unless it majorises."""
        if not self.majorises:
            return self.derivatives(f, targets)[1]
        return self.expected_curvature(f, torch.zeros_like(f)[None], f.new_ones(1), targets)

    def structured_root(self, f: Tensor) -> Root | None:
        """H and ``H^T`` with ``H H^T`` the curvature at ``f``, if its structure makes them cheap; None otherwise."""
        return None

    @abstractmethod
    def validate_targets(self, targets: Tensor) -> Tensor:
        """Checks targets and returns them in the form the calculus uses.

        Raises:
            InputError: If a target is outside the support, saying which, and what to do.
        """

    def check_rows(self, num_rows: int, targets: Tensor) -> None:
        """Checks that the likelihood can be that of so many training rows, and of targets of this kind.

        Args:
            num_rows: N.
            targets: Targets as the user gave them.

        Raises:
            InputError: If it holds something for each row, and for another number of them.
        """

    def missing(self, targets: Tensor) -> Tensor:
        """Which rows say "not observed" ``(N,)``: NaN in any column; likelihoods of labels add -1.

        Args:
            targets: Targets as the user gave them.
        """
        gone = targets.isnan() if targets.is_floating_point() else torch.zeros_like(targets, dtype=torch.bool)
        return gone.flatten(1).any(1) if targets.dim() > 1 else gone

    def take(self, rows: Tensor | slice) -> Likelihood:
        """The likelihood of some training rows; another one only where it knows more of a row than its target."""
        return self

    def pooled(self, targets: Tensor, weight: Tensor, rows: Tensor, num_rows: int) -> Tensor | None:
        """One target for each row of latent values that says as much as all that were observed there, with their weights added.

        None, the default, where there is no such target: observations are then summed one by one.

        Args:
            targets: Validated targets, n of them.
            weight: Their weights ``(n,)``, float64.
            rows: Where each was observed ``(n,)``.
            num_rows: Rows of latent values.
        """
        return None

    def observation_at(self, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
        """What new inputs say about the observations there, as keywords of ``predictive``."""
        return {}

    def initialise(self, targets: Tensor) -> list[str]:
        """Sets parameters that are still at their default from validated targets; returns the names of what was set."""
        return []

    def typical_latents(self, targets: Tensor) -> Tensor | None:
        """Constant latent values ``(C,)`` that fit targets on average, for a prior mean to start at.

        None, the default, where that is wherever the prior mean is.

        Args:
            targets: Validated targets.
        """
        return None

    @abstractmethod
    def predictive(self, mean: Tensor, covariance: Tensor) -> Distribution:
        """Distribution of observations, the latent marginals integrated out.

        Args:
            mean: Latent means ``(M, C)``.
            covariance: Latent covariances between the C functions of one row ``(M, C, C)``; zeros give the plug-in
                distribution.

        Returns:
            A distribution with batch shape ``(M,)``.
        """

    def predictive_log_density(self, mean: Tensor, covariance: Tensor, targets: Tensor) -> Tensor:
        """``log E[p(y_n | f_n)]`` for each row ``(N,)``, as accurate as averages over many rows need it.

        Args:
            mean: Latent means ``(N, C)``.
            covariance: Latent covariances ``(N, C, C)``.
            targets: Validated targets.
        """
        return self.predictive(mean, covariance).log_prob(targets)

    # ------------------------------------------------ GPyTorch's side of things
    @abstractmethod
    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> Distribution:
        """Conditional distribution ``p(y | f)``; ``function_samples`` is ``(..., N)`` for C = 1, else ``(..., N, C)``."""

    def marginal(self, function_dist: MultivariateNormal, *args: Any, **kwargs: Any) -> Distribution:
        """Predictive distribution for a latent posterior: what ``likelihood(model(x))`` returns."""
        options = {name: kwargs[name] for name in self.predictive_options if name in kwargs}
        return self.predictive(*latent_marginals(function_dist, self.num_latents), **options)

    def log_marginal(
        self, observations: Tensor, function_dist: MultivariateNormal, *args: Any, **kwargs: Any
    ) -> Tensor:
        """``log E[p(y_n | f_n)]`` for each row, ``(N,)``."""
        predictive = self.predictive(*latent_marginals(function_dist, self.num_latents))
        return predictive.log_prob(self.validate_targets(observations))

    def expected_log_prob(
        self, observations: Tensor, function_dist: MultivariateNormal, *args: Any, **kwargs: Any
    ) -> Tensor:
        """``E[log p(y_n | f_n)]`` for each row, ``(N,)``."""
        mean, covariance = latent_marginals(function_dist, self.num_latents)
        nodes, weights = self.standard_nodes(mean)
        offsets = node_offsets(psd_root(covariance), nodes)
        return self.expected_log_density(mean, offsets, weights, self.validate_targets(observations))

    # ------------------------------------------------------------ expectations
    def expected_log_density(self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
        """``E[log p(y_n | f_n)]`` for each row ``(N,)``, as a weighted sum over nodes.

        Args:
            mean: Latent means ``(N, C)``.
            offsets: Distances of the nodes from the mean ``(S, N, C)``.
            weights: Weights of the nodes ``(S,)``.
            targets: Validated targets ``(N,)``.
        """
        return self._averages(lambda f, y: (self.log_density(f, y),), mean, offsets, weights, targets)[0]

    def expected_derivatives(
        self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Expected gradient ``(N, C)`` and curvature ``(N, C, C)``; arguments as in ``expected_log_density``."""
        gradient, curvature = self._averages(self.derivatives, mean, offsets, weights, targets)
        return gradient, curvature

    def expected_terms(
        self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``expected_log_density`` in float64, and ``expected_derivatives``: what a Newton step wants to know."""
        log_density = self.expected_log_density(mean.double(), offsets, weights.double(), targets)
        return log_density, *self.expected_derivatives(mean, offsets, weights, targets)

    def expected_curvature(self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
        """Expected curvature ``(N, C, C)`` that a covariance is conditioned with; arguments as in ``expected_log_density``.

        Where nodes are samples, from more of them. A row that is almost certain has curvature where its latent values come near
        a boundary, which few samples find: from few, curvature is anything between nothing and much.
        """
        if not self.samples:
            return self.expected_derivatives(mean, offsets, weights, targets)[1]

        def average(*moments: Tensor) -> list[Tensor]:
            return list(self.expected_derivatives(*moments))

        return self._by_width(average, mean, offsets, weights, targets, least=1)[1]

    def _averages(
        self,
        values: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
        mean: Tensor,
        offsets: Tensor,
        weights: Tensor,
        targets: Tensor,
    ) -> list[Tensor]:
        """Expectations ``(N, ...)`` of functions of latent values ``(S, N, C)`` and targets, by the nodes.

        Few nodes are blind between them where marginals are wide. They are then others of the same variance, as near to one
        another as the likelihood asks for. Which they are, a row's own marginal says: the rows beside it change nothing.
        """
        if self.samples:
            averaged = partial(_averaged, values)
            return self._by_width(averaged, mean, offsets, weights, targets)
        scale = self._wide(offsets, weights)
        if scale is None:
            return _averaged(values, mean, offsets, weights, targets)
        widths = scale.detach()[:, 0] / self.latent_width
        levels = (widths / _FEW_NODES_REACH).log2().ceil().clamp(0, _MOST_LEVELS)
        if not self.exchangeable:  # rows cannot be looked at alone
            levels = levels.amax().expand(levels.shape)
        parts, places = [], []
        for level in levels.unique().tolist():
            rows = (levels == level).nonzero().squeeze(-1)
            whole = rows.numel() == len(levels)
            m, y, s = (mean, targets, scale) if whole else (mean[rows], targets[rows], scale[rows])
            if level == 0.0:
                part = _averaged(values, m, offsets[:, rows], weights, y)
            else:
                part = _averaged(values, m, *trapezoid(0.5**level / _FEW_NODES_REACH, like=weights), y, s)
            parts.append(part)
            places.append(rows)
        order = torch.cat(places).argsort()
        return [torch.cat(found)[order] for found in zip(*parts, strict=True)]

    @property
    def samples(self) -> bool:
        """Whether nodes are random samples, and not those of a rule."""
        return self.num_latents > 1 and type(self).standard_nodes is Likelihood.standard_nodes

    def _by_width(
        self, average: Averages, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor, least: int = 0
    ) -> list[Tensor]:
        """``by_width`` with what the likelihood says of its rows."""
        if not self.samples:
            return average(mean, offsets, weights, targets)
        rows = partial(by_width, width=self.latent_width, separable=self.exchangeable, least=least)
        return rows(average, mean, offsets, weights, targets)

    def _wide(self, offsets: Tensor, weights: Tensor) -> Tensor | None:
        """Deviations ``(N, 1)`` of marginals of one function, or None if its nodes are near enough for all of them."""
        if offsets.shape[-1] != 1 or offsets.shape[1] == 0 or self.quadratic:
            return None
        variance = node_covariance(offsets, weights)[:, 0]
        scale = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        return scale if float(scale.detach().amax()) > _FEW_NODES_REACH * self.latent_width else None

    @property
    def plain_softmax(self) -> bool:
        """Whether densities and predictions are those of the softmax, and not a subclass's own."""
        return False

    @property
    def num_nodes(self) -> int:
        """Nodes of a row that ``standard_nodes`` gives."""
        return _NUM_NODES if self.num_latents == 1 else 2 * num_pairs(self.num_latents)

    def standard_nodes(self, like: Tensor, seed: int = 0, skip: int = 0) -> tuple[Tensor, Tensor]:
        """Standard normal nodes for expectations over a row's latent values.

        20 Gauss-Hermite nodes, the same for every row, when C = 1, which expectations under wide marginals replace by more;
        otherwise antithetic pairs of fixed pseudo-random samples, others for every row, whose second moments are exact
        (``likelihoods.sampled``); where marginals are wide, expectations replace them by more.

        Args:
            like: Means ``(N, C)``, for shape, dtype and device.
            seed: Seed of the samples.
            skip: Rows before these, whose samples are drawn and left out.

        Returns:
            Nodes ``(S, N or 1, C)`` and weights ``(S,)``.
        """
        if like.shape[-1] == 1:
            nodes, weights = gauss_hermite(_NUM_NODES, like=like)
            return nodes[:, None, None], weights
        return antithetic_nodes(like, seed, skip)


def _averaged(
    values: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    mean: Tensor,
    nodes: Tensor,
    weights: Tensor,
    targets: Tensor,
    scale: Tensor | None = None,
) -> list[Tensor]:
    """Averages of values, some nodes at a time: offsets ``(S, N, C)``, or nodes ``(S,)`` of deviations ``(N, 1)``."""
    step = max(1, _CHUNK_VALUES // max(1, mean.numel() * mean.shape[-1]))
    totals: list[Tensor] = []
    for start in range(0, len(weights), step):
        piece, weight = nodes[start : start + step], weights[start : start + step]
        found = values(mean + (piece if scale is None else piece[:, None, None] * scale), targets)
        terms = [torch.einsum("s,s...->...", weight.to(value), value) for value in found]
        totals = [a + b for a, b in zip(totals, terms, strict=True)] if totals else terms
    return totals


def node_offsets(root: Tensor, nodes: Tensor) -> Tensor:
    """``root_n @ node_s`` ``(S, N, C)`` for roots ``(N, C, C)`` and nodes ``(S, N or 1, C)``."""
    if root.shape[-1] == 1:
        return nodes * root.squeeze(-1)
    by_row = nodes.permute(1, 2, 0)
    if root.requires_grad:
        return torch.bmm(root, by_row).permute(2, 0, 1).contiguous()
    offsets = nodes.new_empty(nodes.shape)
    # Products of all rows at once, and then their copy, are as large as the result.
    for start in range(0, root.shape[0], _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        offsets[:, rows] = torch.bmm(root[rows], by_row[rows]).permute(2, 0, 1)
    return offsets


def latent_marginals(function_dist: MultivariateNormal, num_latents: int) -> tuple[Tensor, Tensor]:
    """Per-row means ``(M, C)`` and covariances ``(M, C, C)`` of a GPyTorch latent distribution.

    Args:
        function_dist: Latent distribution at M inputs.
        num_latents: C.

    Raises:
        InputError: If the distribution does not have ``num_latents`` functions.
    """
    mean = function_dist.mean
    if isinstance(function_dist, MultitaskMultivariateNormal):
        size = mean.shape[-1]
        if hasattr(function_dist, "row_covariance"):  # our own posteriors know their marginals
            return mean, function_dist.row_covariance()
        covariance, shape = function_dist.covariance_matrix, mean.shape[-2:]
        if not function_dist._interleaved:
            order = torch.arange(covariance.shape[-1], device=mean.device).view(size, -1).mT.flatten()
            covariance = covariance[..., order, :][..., order]
        covariance = covariance.unflatten(-1, shape).unflatten(-3, shape)
        blocks = covariance.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
    else:
        size = 1
        mean, blocks = mean.unsqueeze(-1), function_dist.variance[..., None, None]
    if size != num_latents:
        raise InputError(
            f"The likelihood needs a distribution over {num_latents} latent function(s) per row. Got {size}. Call the "
            "model that was built with this likelihood."
        )
    return mean, blocks
