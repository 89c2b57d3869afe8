"""What a random model must predict: textbook algebra with dense float64 matrices, not the package's operators or solvers."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import gpytorch
import gpytorch.likelihoods as gl
import numpy as np
import torch
from helpers import CASES, CUTPOINTS
from random_models import (
    EXACT,
    TASKS,
    NoModel,
    RandomGP,
    Spec,
    case_of,
    make_likelihood,
    make_model,
    make_targets,
    missing_rows,
    prior_of,
    sample_weight,
)
from torch import Tensor
from torch.distributions import Beta, Gamma, Laplace, LogNormal, NegativeBinomial, Normal, Poisson, StudentT
from torch.nn.functional import logsigmoid, softplus

from itergp import InputError, SolverError
from itergp.likelihoods import Likelihood
from itergp.likelihoods.sampled import by_width
from itergp.numerics.blocks import psd_root
from itergp.solvers import Reason, Solution

Density = Callable[[Tensor, Tensor], Tensor]  # of latent values (..., N, C) and targets

_ROUNDING = {"float32": 1e-3, "float64": 1e-6}  # of posteriors, as a share of what they are made from
_SPREAD = 4.0  # how far from the reference a float32 answer may be, in units of what evaluating K in float32 moves it


class Wrong(AssertionError):
    """A wrong answer without a message; the text begins with the kind of the fault."""


# -------------------------------------------------------------------- densities
def _ordinal(log_cdf: Callable[[Tensor], Tensor], f: Tensor, y: Tensor) -> Tensor:
    bounds = torch.tensor([-1e6, *CUTPOINTS, 1e6]).double()
    upper, lower = bounds[y.long() + 1] - f[..., 0], bounds[y.long()] - f[..., 0]
    left = upper + lower < 0.0
    a, b = log_cdf(torch.where(left, upper, -lower)), log_cdf(torch.where(left, lower, -upper))
    return a + torch.log(-torch.expm1((b - a).clamp_max(-1e-300)))


def _censored(shape: float, f: Tensor, y: Tensor) -> Tensor:
    scaled = shape * (y[:, 0].log() - f[..., 0])
    return -scaled.exp() + torch.where(y[:, 1] == 1.0, math.log(shape) + scaled - y[:, 0].log(), torch.zeros(()))


def _log_logistic(f: Tensor, y: Tensor) -> Tensor:
    scaled = 2.0 * (y[:, 0].log() - f[..., 0])
    return logsigmoid(-scaled) + torch.where(
        y[:, 1] == 1.0, math.log(2.0) - y[:, 0].log() + logsigmoid(scaled), torch.zeros(())
    )


def _log_normal(f: Tensor, y: Tensor) -> Tensor:
    z = 2.0 * (y[:, 0].log() - f[..., 0])
    density = math.log(2.0) - y[:, 0].log() - 0.5 * (z.square() + math.log(2.0 * math.pi))
    return torch.where(y[:, 1] == 1.0, density, torch.special.log_ndtr(-z))


def _intervals(log_survival: Callable[[Tensor], Tensor], observed: Density, f: Tensor, y: Tensor) -> Tensor:
    """Of all kinds of censoring, given ``log P(T > exp(f) u)`` as a function of ``log u``."""
    time, event, end = y.unbind(-1)
    between = event == 3.0
    after, later = (log_survival(t.log() - f[..., 0]) for t in (time, torch.where(between, end, 2.0 * time)))
    mass = after + torch.log(-torch.expm1((later - after).clamp_max(-1e-300)))
    before = torch.log(-torch.expm1(after.clamp_max(-1e-300)))
    found = torch.where(event == 1.0, observed(f, torch.stack([time, torch.ones_like(time)], -1)), after)
    return torch.where(between, mass, torch.where(event == 2.0, before, found))


def _zero_inflated(f: Tensor, y: Tensor) -> Tensor:
    zero = math.log(0.3) + softplus(math.log(0.7 / 0.3) - f[..., 0].clamp_max(300.0).exp())
    counted = _poisson(torch.where(y == 0, 0.0, f[..., 0]), y)  # whose slope may be infinite where it is not wanted
    return torch.where(y == 0, zero, math.log(0.7) + counted)


def _poisson(log_rate: Tensor, y: Tensor) -> Tensor:
    """PyTorch's has NaN derivatives where a rate is 0 in float64."""
    return y * log_rate - log_rate.exp() - torch.lgamma(y + 1.0)


def _exposed(f: Tensor, y: Tensor) -> Tensor:
    return _poisson(f[..., 0] + y[:, 1].log(), y[:, 0]) if y.dim() > 1 else _poisson(f[..., 0], y)


def _counts(rate: Tensor, y: Tensor) -> Tensor:
    exposure = y[:, 1] if y.dim() > 1 else torch.ones(())
    return Poisson(exposure * rate, validate_args=False).log_prob(y[:, 0] if y.dim() > 1 else y)


def _binomial(f: Tensor, y: Tensor, n: Tensor) -> Tensor:
    ways = torch.lgamma(n + 1.0) - torch.lgamma(y + 1.0) - torch.lgamma(n - y + 1.0)
    return ways + y * logsigmoid(f) + (n - y) * logsigmoid(-f)  # PyTorch's has no second derivative at f = 0


def _cloglog(f: Tensor, y: Tensor) -> Tensor:
    rate = f[..., 0].clamp_max(300.0).exp()
    return torch.where(y == 1, torch.log(-torch.expm1(-rate)), -rate)


DENSITIES: dict[str, Density] = {
    "bernoulli-logit": lambda f, y: logsigmoid((2.0 * y - 1.0) * f[..., 0]),
    "bernoulli-probit": lambda f, y: torch.special.log_ndtr((2.0 * y - 1.0) * f[..., 0]),
    "bernoulli-cloglog": _cloglog,
    "categorical": lambda f, y: torch.log_softmax(f, -1).gather(-1, y.long().expand(f.shape[:-1])[..., None])[..., 0],
    "binomial": lambda f, y: _binomial(f[..., 0], y[:, 0], y[:, 1]),
    "ordinal-logit": lambda f, y: _ordinal(logsigmoid, f, y),
    "ordinal-probit": lambda f, y: _ordinal(torch.special.log_ndtr, f, y),
    "poisson": _exposed,
    "poisson-exposure": _exposed,
    "poisson-softplus": lambda f, y: _counts(softplus(f[..., 0], threshold=1e3), y),
    "negative-binomial": lambda f, y: NegativeBinomial(
        2.0, logits=f[..., 0] - math.log(2.0), validate_args=False
    ).log_prob(y),
    "zero-inflated-poisson": _zero_inflated,
    "gaussian": lambda f, y: Normal(f[..., 0], 0.1**0.5).log_prob(y),
    "heteroscedastic": lambda f, y: Normal(f[..., 0], (0.5 * f[..., 1]).exp(), validate_args=False).log_prob(y),
    "student-t": lambda f, y: StudentT(4.0, f[..., 0], 0.1**0.5).log_prob(y),
    "laplace": lambda f, y: Laplace(f[..., 0], 0.1**0.5).log_prob(y),
    "gamma": lambda f, y: Gamma(3.0, 3.0 * (-f[..., 0]).exp(), validate_args=False).log_prob(y),
    "log-normal": lambda f, y: LogNormal(f[..., 0], 0.1**0.5).log_prob(y),
    "beta": lambda f, y: Beta(
        5.0 * torch.sigmoid(f[..., 0]), 5.0 * torch.sigmoid(-f[..., 0]), validate_args=False
    ).log_prob(y),
    "weibull": lambda f, y: _censored(2.0, f, y),
    "log-logistic": _log_logistic,
    "weibull-intervals": lambda f, y: _intervals(lambda u: -(2.0 * u).exp(), DENSITIES["weibull"], f, y),
    "log-logistic-intervals": lambda f, y: _intervals(lambda u: logsigmoid(-2.0 * u), _log_logistic, f, y),
    "log-normal-times": _log_normal,
    "log-normal-intervals": lambda f, y: _intervals(lambda u: torch.special.log_ndtr(-2.0 * u), _log_normal, f, y),
    "exponential": lambda f, y: _censored(1.0, f, y),
}


def density_of(spec: Spec) -> Density:
    """``log p(y_n | f_n)`` in float64, of GPyTorch's likelihoods by their own ``forward``."""
    if spec.likelihood in CASES:
        return DENSITIES[spec.likelihood]
    known = {"gl bernoulli": "bernoulli-probit", "gl softmax": "categorical"}
    if spec.likelihood in known:
        return DENSITIES[known[spec.likelihood]]
    made = copy.deepcopy(make_likelihood(spec)).double()
    if spec.likelihood == "gl mixed softmax":
        return lambda f, y: DENSITIES["categorical"](f @ made.mixing_weights.mT, y)
    if isinstance(made, gl.FixedNoiseGaussianLikelihood):
        second = made.second_noise if "learned" in spec.likelihood else 0.0
        noise = made.noise_covar.noise.double() + second
        return lambda f, y: Normal(f[..., 0], noise.sqrt()).log_prob(y)
    if spec.likelihood == "gl hadamard":
        noise = made.noise.detach().reshape(-1)[torch.arange(spec.rows) % TASKS]
        return lambda f, y: Normal(f[..., 0], noise.sqrt()).log_prob(y)
    return lambda f, y: made.forward(f[..., 0]).log_prob(y)


# --------------------------------------------------------------------- reference
@dataclass
class Reference:
    """Dense algebra for one evaluation of the prior.

    Attributes:
        spec: The model.
        mean: Prior mean ``(N + M, C)``.
        kernel: Prior covariance ``(C', N + M, N + M)``.
        density: Of one row.
        latents: C.
    """

    spec: Spec
    mean: Tensor
    kernel: Tensor
    density: Density
    latents: int

    def __post_init__(self) -> None:
        self.size, total = self.spec.rows, self.mean.shape[0]
        self.mean = self.mean.expand(total, self.latents)
        blocks = self.kernel.expand(self.latents, total, total)
        joint = torch.zeros(total, self.latents, total, self.latents, dtype=torch.float64)
        for c in range(self.latents):
            joint[:, c, :, c] = blocks[c]
        self.joint = joint.reshape(total * self.latents, -1)
        count = self.size * self.latents
        self.training, self.cross, self.new = (
            self.joint[:count, :count],
            self.joint[count:, :count],
            self.joint[count:, count:],
        )
        self.targets = make_targets(self.spec)
        self.targets = self.targets.double() if self.targets.is_floating_point() else self.targets
        weight = sample_weight(self.spec)
        weight = torch.ones(self.size).double() if weight is None else weight
        self.weight = weight * (~missing_rows(self.spec)).double()

    def log_density(self, f: Tensor) -> Tensor:
        """Weighted log-densities ``(..., N)``."""
        return self.density(f, self.targets) * self.weight

    def derivatives(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and negative Hessian by automatic differentiation."""
        with torch.enable_grad():
            point = f.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_density(point).sum(), point, create_graph=True)
            rows = [
                torch.autograd.grad(gradient[..., c].sum(), point, retain_graph=True, allow_unused=True)[0]
                if gradient.requires_grad
                else None
                for c in range(self.latents)
            ]
        rows = [torch.zeros_like(f) if row is None else row for row in rows]
        return gradient.detach(), -torch.stack(rows, -1).detach()

    def expected_derivatives(
        self, f: Tensor, covariance: Tensor, nodes: Tensor, weights: Tensor, sampled: Likelihood | None = None
    ) -> tuple[Tensor, Tensor]:
        """Expectations under marginals with these covariances; for a likelihood of samples, by more where they are wide."""
        offsets = torch.einsum("ncd,snd->snc", psd_root(covariance.double()), nodes.expand(-1, self.size, -1))

        def average(mean: Tensor, around: Tensor, weights: Tensor, rows: Tensor) -> list[Tensor]:
            values = f.expand(len(weights), -1, -1).clone()
            values[:, rows] = mean + around
            g, W = self.derivatives(values)
            weights = weights.double()
            return [torch.einsum("s,snc->nc", weights, g)[rows], torch.einsum("s,sncd->ncd", weights, W)[rows]]

        rows = torch.arange(self.size)
        if sampled is None:
            gradient, curvature = average(f, offsets, weights, rows)
        else:
            width, separable = sampled.latent_width, sampled.exchangeable
            gradient, curvature = by_width(average, f, offsets, weights, rows, width=width, separable=separable)
        return gradient, curvature

    def at(self, weights: Tensor) -> Tensor:
        """``m + K V`` at all inputs ``(N + M, C)``."""
        count = self.size * self.latents
        return self.mean + (self.joint[:, :count] @ weights.reshape(-1)).view(-1, self.latents)

    def mode(self, start: Tensor, derivatives: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor | None:
        """Weights ``V = g(m + K V)`` by Newton's method from some weights; None if it does not get there."""
        V, best = start.double(), math.inf
        for _ in range(60):
            f = self.at(V)[: self.size]
            g, W = derivatives(f)
            b = torch.einsum("ncd,nd->nc", W, f - self.mean[: self.size]) + g
            inside = torch.eye(self.training.shape[0]).double() + self.training @ _blocks(W)
            if not bool(torch.isfinite(inside).all()):
                return None
            solved, failed = torch.linalg.solve_ex(inside, self.training @ b.reshape(-1))
            if failed:
                return None
            solved = solved.view_as(b)
            step = b - torch.einsum("ncd,nd->nc", W, solved) - V
            size = float((self.training @ step.reshape(-1)).abs().max())
            V = V + step
            if size <= 1e-12 * (1.0 + float(f.abs().max())):
                return V
            best, stuck = min(best, size), size > 1e3 * max(best, 1e-300)
            if stuck or not math.isfinite(size):
                return None
        return V if size < 1e-7 * (1.0 + float(f.abs().max())) else None

    def covariance(self, curvature: Tensor, *, new: bool) -> Tensor:
        """``K - K W (I + K W)^{-1} K`` at the new inputs, or at the training inputs, joint."""
        own, cross = (self.new, self.cross) if new else (self.training, self.training)
        return own - self._weights(curvature, cross) @ cross.mT

    def amplification(self, curvature: Tensor, *, new: bool) -> float:
        """By how much an error in every entry of K, each by itself, enters the posterior covariance at most, to first order.

        The covariance is ``L K L^T`` for the joint K, and changes by ``L E L^T``, with L the identity less weights; single
        errors of size e add up to a deviation of no more than ``sqrt(2) e |L_i| |L_j|``.
        """
        weights = self._weights(curvature, self.cross if new else self.training)
        if not new:
            weights = torch.eye(weights.shape[0]).double() - weights
        return math.sqrt(2.0) * (float(new) + float(weights.square().sum(-1).max()))

    def _weights(self, curvature: Tensor, cross: Tensor) -> Tensor:
        """``K_* W (I + K W)^{-1}``, for a curvature that is positive semi-definite."""
        values, vectors = torch.linalg.eigh(0.5 * (curvature + curvature.mT).double())
        root = _blocks(vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2))
        inside = torch.eye(root.shape[0]).double() + root.mT @ self.training @ root
        return torch.linalg.solve(inside, root.mT @ cross.mT).mT @ root.mT

    @cached_property
    def prior_variance(self) -> Tensor:
        """``k_c(x, x)`` at all inputs ``(N + M, C)``."""
        return self.joint.diagonal().view(-1, self.latents).clamp_min(0.0)


def _fine_nodes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes ``(S, 1, C)`` and weights: equidistant, as near to one another as any likelihood here asks for."""
    latents = covariance.shape[-1]
    if latents > 1:
        nodes, weights = (torch.from_numpy(t) for t in np.polynomial.hermite_e.hermegauss(40))
        nodes, weights = torch.cartesian_prod(nodes, nodes), torch.cartesian_prod(weights, weights).prod(-1)
        return nodes.unsqueeze(1), weights / weights.sum()
    widest = float(covariance.max().sqrt()) if covariance.numel() else 1.0
    step = max(min(0.25, 0.15 / max(widest, 1e-3)), 0.005)
    reach = math.ceil(min(12.0 + widest, 37.0) / step)  # exp(f) is largest, times the density, a variance from the mean
    nodes = torch.arange(-reach, reach + 1).double() * step
    weights = torch.exp(-0.5 * nodes.square())
    return nodes[:, None, None], weights / weights.sum()


def _blocks(curvature: Tensor) -> Tensor:
    size, latents = curvature.shape[:2]
    joint = torch.zeros(size, latents, size, latents, dtype=torch.float64)
    rows = torch.arange(size)
    joint[rows, :, rows, :] = curvature.double()
    return joint.reshape(size * latents, -1)


# ------------------------------------------------------------------------ checks
@dataclass
class Check:
    """One model's answers beside the reference.

    Attributes:
        spec: The model.
        model: It.
        solution: Its posterior.
        reference: For the prior as evaluated in the model's dtype.
        other: For the prior evaluated in float64, wrong by as much as GPyTorch is there.
    """

    spec: Spec
    model: RandomGP
    solution: Solution
    reference: Reference
    other: Reference

    def __post_init__(self) -> None:
        self.rounding = _ROUNDING[self.spec.dtype]
        self.weights = self.solution.representer_weights.double()
        self.f = self.solution.latent_values.double()
        self.largest = float(self.reference.prior_variance.max())
        size = self.reference.size * self.reference.latents
        eps = 2e-16 if self.spec.dtype == "float64" else 1e-7
        terms = self.reference.joint[:, :size].abs() @ self.weights.abs().reshape(-1)
        # Of m + K V: what the terms of the sum are rounded to, and what the prior itself is.
        self.of_mean = 50.0 * eps * terms.max() + self.rounding * float(self.f.abs().max())
        self.of_mean += eps * self.largest  # weights are differences of terms of about 1, which may cancel
        self.of_mean += _SPREAD * float((self.reference.at(self.weights) - self.other.at(self.weights)).abs().max())

    @property
    def exact(self) -> bool:
        """Whether every latent value is an action: not where time ended before the last stage."""
        return self.spec.solver in EXACT and self.solution.status.reason is not Reason.TIME

    @property
    def variational(self) -> bool:
        return self.solution.approximation == "variational" and not self.model.calculus.quadratic

    def require(self, kind: str, error: Tensor, allowed: Tensor | float) -> None:
        """An error must be below what is allowed, elementwise."""
        allowed = torch.as_tensor(allowed).double()
        excess = error.double() - allowed
        if not bool((excess <= 0.0).all()):
            worst = int(excess.nan_to_num(nan=math.inf).argmax())
            got, most = error.reshape(-1)[worst], allowed.expand_as(error).reshape(-1)[worst]
            raise Wrong(f"{kind}: error {float(got):.3g}, allowed {float(most):.3g}; {self.solution.status}")

    def means(self, mean: Tensor, latent_mean: Tensor) -> None:
        """The mean is that of the weights, everywhere."""
        expected = self.reference.at(self.weights)
        size = self.reference.size
        allowed = torch.full_like(self.f, float(self.of_mean))
        if self.spec.solver.startswith("iterncgp"):  # whose recursion rounds, far below what is certified
            q = self.solution.certificate.norm_squared if self.solution.certificate else math.inf
            allowed = allowed + (1e-3 * (self.reference.prior_variance[:size] * q).sqrt()).nan_to_num(nan=math.inf)
        self.require("mean at training inputs", (self.f - expected[:size]).abs(), allowed)
        self.require("mean at new inputs", (mean.double() - expected[size:]).abs(), self.of_mean)
        self.require("latent_mean", (latent_mean.double() - expected[size:]).abs(), self.of_mean)

    def site(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Gradient and curvature that the mean must be stationary for."""
        if not self.variational:
            return self.reference.derivatives
        covariance = self.solution.latent_covariance
        if self.reference.latents == 1 or self.spec.likelihood == "heteroscedastic":
            nodes, weights = _fine_nodes(covariance[self.reference.weight > 0.0])
        else:
            observations, distinct = self.model.conditioned.observations, self.solution.distinct
            means = self.f if distinct is None else self.f[distinct.first]
            nodes, weights = (t.double() for t in observations.standard_nodes(means))
            if distinct is not None and nodes.shape[1] > 1:  # equal rows have the same samples
                nodes = nodes[:, distinct.index]
        sampled = self.model.calculus if self.model.calculus.samples else None
        return lambda f: self.reference.expected_derivatives(f, covariance, nodes, weights, sampled)

    def certificate(self) -> None:
        """The mean is as near to the mode as the certificate and the residual say."""
        q = self.solution.certificate.norm_squared if self.solution.certificate else math.inf
        if not self.model.calculus.log_concave:
            self.stationary()
        if not math.isfinite(q) or self.spec.likelihood in ("laplace", "gl laplace"):  # whose modes are kinks
            return
        if self.variational and not self.solution.status.converged:
            return  # the certificate is about marginals that rounds have since left
        residual = self.solution.variational_residual if self.variational else 0.0
        if residual is None or not math.isfinite(residual):
            return
        found = [r.mode(self.weights, self.site()) for r in (self.reference, self.other)]
        if found[0] is None or found[1] is None:
            return
        exact = self.reference.at(found[0])[: self.reference.size]
        spread = _SPREAD * (exact - self.other.at(found[1])[: self.reference.size]).abs().max()
        deviation = self.solution.latent_covariance.diagonal(dim1=-2, dim2=-1).double().clamp_min(0.0).sqrt()
        bound = (self.reference.prior_variance[: self.reference.size] * q).sqrt()
        allowed = 1.001 * bound + 2.0 * residual * deviation + self.of_mean + spread
        allowed = allowed + 1e-7 * self.largest**0.5  # to which the reference is found where it is stuck
        self.require("distance to the mode beyond the certificate", (self.f - exact).abs(), allowed)

    def stationary(self) -> None:
        """Without log-concavity, a mean that counts as stationary has next to no gradient."""
        if not self.solution.status.converged or self.variational or self.spec.likelihood in ("laplace", "gl laplace"):
            return
        R = self.reference.derivatives(self.f)[0] - self.weights
        if (distinct := self.solution.distinct) is not None:  # what equal rows say counts at the first of them
            R = torch.zeros_like(R).index_add_(0, distinct.first[distinct.index], R)
        R = R.reshape(-1)
        q = float(R @ self.reference.training @ R)
        tolerance = 2.0 * self.model.solver.tolerance * self.spec.rows
        noise = self.of_mean**2 / max(float(self.reference.prior_variance.max()), 1e-300)
        W = float(self.solution.curvature.abs().max()) if self.solution.curvature is not None else 0.0
        rounding = (W * self.of_mean) ** 2 * float(self.reference.training.abs().sum()) + noise
        if not q <= 4.0 * tolerance + rounding:
            raise Wrong(f"gradient of a stationary mean: {q:.3g}, tolerance {tolerance:.3g}, {self.solution.status}")

    @property
    def near(self) -> bool:
        """Whether the mean is where its status says that it can be relied on: within a nat per row of the mode."""
        certificate = self.solution.certificate
        gap = math.inf if certificate is None else certificate.objective_gap
        return self.solution.status.converged or gap <= self.spec.rows

    def curvature(self) -> Tensor | None:
        """W that the covariance must belong to: our own where it is the Hessian, otherwise the solution's."""
        if self.model.calculus.curvature != "hessian" or (self.variational and self.reference.latents > 1):
            return self.solution.curvature
        return self.site()(self.f)[1]

    def covariances(self, joint: Tensor, variance: Tensor) -> None:
        """Exact where every latent value is an action, otherwise between the exact covariance and the prior's."""
        W, exact = self.curvature(), self.exact
        if not self.near:  # which the status says, and its gap
            return
        if W is None or not bool(torch.isfinite(W).all()):
            return
        deviations = 1e-3 + 2.0 * (self.solution.variational_residual or 0.0) if self.variational else 0.0
        if not math.isfinite(deviations):
            return
        for new in (True, False):
            expected = self.reference.covariance(W, new=new)
            spread = float((expected - self.other.covariance(W, new=new)).abs().max())
            # That is one rounding of all entries; another as large may come out larger.
            entries = float((self.reference.joint - self.other.joint).abs().max())
            spread = _SPREAD * max(spread, entries * self.reference.amplification(W, new=new))
            allowed = self.rounding * self.largest + spread
            diagonal = expected.diagonal()
            allowed = allowed + 2.5 * deviations * diagonal.abs()
            if new:
                got = joint.double()
                least = gpytorch.settings.min_variance.value(
                    getattr(torch, self.spec.dtype)
                )  # to which GPyTorch raises variances
                self.require("variance beside covariance", (variance.double() - got.diagonal()).abs(), allowed + least)
            else:
                got = _blocks(self.solution.latent_covariance)
                expected = expected * (got.abs() + _blocks(torch.ones_like(self.solution.latent_covariance)) > 0)
            where = "new" if new else "training"
            prior = (self.reference.new if new else self.reference.training).diagonal()
            self.require(f"variance at {where} inputs below exact", diagonal - got.diagonal(), allowed)
            self.require(f"variance at {where} inputs above prior", got.diagonal() - prior, allowed)
            if exact:
                most = allowed.max() * torch.ones_like(got)
                self.require(f"covariance at {where} inputs", (got - expected).abs(), most)
            elif new:
                smallest = torch.linalg.eigvalsh(got - expected).min()
                self.require("joint covariance below exact", -smallest, allowed.max() * got.shape[0])

    def evidence(self) -> None:
        """The Laplace evidence, GPML eq. 3.32, where the covariance is exact."""
        value = self.solution.log_marginal_likelihood
        W = self.curvature()
        if not self.near:  # the gap, which the status says, is the objective's
            return
        if value is None or not self.exact or W is None or not bool(torch.isfinite(W).all()):
            return
        found = []
        for r in (self.reference, self.other):
            inside = torch.eye(r.training.shape[0]).double() + r.training @ _blocks(W)
            centred = (r.at(self.weights)[: r.size] - r.mean[: r.size]).reshape(-1)
            psi = 0.5 * self.weights.reshape(-1) @ centred - r.log_density(r.at(self.weights)[: r.size]).sum()
            found.append(float(-psi - 0.5 * torch.linalg.slogdet(inside).logabsdet))
        slope = (self.weights.abs() * self.of_mean).sum()
        allowed = self.rounding * (1.0 + abs(found[0])) * 10.0 + _SPREAD * abs(found[0] - found[1]) + slope
        self.require("log_marginal_likelihood", torch.tensor(abs(value - found[0])).reshape(1), allowed.reshape(1))

    def predictive(self, new: tuple[Tensor, ...], mean: Tensor, variance: Tensor) -> None:
        """The density of an observation is the conditional density under the latent marginals, by a dense sum over both."""
        case = case_of(self.spec.likelihood)
        predicted = self.model.predict(new if len(new) > 1 else new[0])
        if CASES[case].num_latents > 1 or self.spec.likelihood == "gl mixed softmax":
            if CASES[case].observed == "label":
                total = predicted.probs.double().sum(-1)
                self.require("probabilities add up to 1", (total - 1.0).abs(), 1e-4)
            return
        fixed = "fixed" in self.spec.likelihood or self.spec.likelihood == "gl hadamard"
        if fixed or self.reference.targets.dim() > 1 or self.spec.solver not in EXACT:
            return
        deviation = variance.double().clamp_min(1e-14).sqrt()
        grid = torch.linspace(-9.0, 9.0, 6001).double()
        step = float(grid[1] - grid[0])
        weights = torch.exp(-0.5 * grid**2) * step / math.sqrt(2.0 * math.pi)
        for n in range(mean.shape[0]):
            if float(deviation[n]) > 20.0:
                continue
            y = self.reference.targets[n % self.spec.rows].reshape(1)
            f = (mean[n].double() + deviation[n] * grid).view(-1, 1, 1)
            values = self.reference.density(f, y)[:, 0]
            expected = float((weights * values.exp()).sum())
            at = torch.as_tensor(y, dtype=torch.float64 if self.spec.dtype == "float64" else torch.float32)
            got = float(predicted.log_prob(at.expand(mean.shape[0]))[n].exp())
            most = 0.03 * expected + 3e-3 * (1.0 if CASES[case].observed in ("label", "level", "count") else expected)
            self.require("predictive density", torch.tensor([abs(got - expected)]), most + self.rounding)


def check(spec: Spec) -> str:
    """Compares a model with the reference.

    Returns:
        ``"right"``, ``"refused: .."``, ``"not converged: .."`` or ``"no reference: .."``.

    Raises:
        Wrong: If an answer is wrong without a message, or the error is not the package's.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return _check(spec)


def _evaluation_error(spec: Spec, kernel: Tensor) -> Tensor:
    """Something as large as what GPyTorch's float64 entries are wrong by ``(C', n, n)``, positive semi-definite."""
    text, size = str(spec.kernel), kernel.shape[-1]
    # Distances from products are wrong by sqrt(eps), which shows where a kernel has a kink; inducing points take jitter.
    rough = "matern 0.5" in text or "piecewise 0" in text or "inducing" in text
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).double()
    # Products of structured matrices take jitter for the roots.
    multiplied = spec.likelihood == "gl hadamard" or spec.forward == "product of matrices"
    multiplied = multiplied or (spec.forward == "evaluated" and "product" in text) or "product linear" in text
    size_of_error = 1e-6 if rough or multiplied else 1e-14
    if rough and spec.dtype == "float32" and spec.forward in ("evaluated", "product of matrices"):
        # GPyTorch's float32 distance of equal rows is sqrt(6e-8) of their norm in lengthscales.
        size_of_error = 4e-3
    scale = size_of_error * kernel.diagonal(dim1=-1, dim2=-2).amax(-1)[:, None, None]
    return scale * (noise @ noise.mT / size)


def _fails_by_itself(spec: Spec, rows: tuple[Tensor, ...]) -> bool:
    """Whether what ``forward`` does fails in GPyTorch, before anybody looks at the covariance."""
    try:
        make_model(spec)[0].forward(*rows)
    except (RuntimeError, ValueError):
        return True
    return False


def _without_reference(model: RandomGP, new: tuple[Tensor, ...], error: Exception) -> str:
    """What becomes of a model whose covariance GPyTorch cannot evaluate: the package should not either."""
    try:
        model(*new).covariance_matrix  # noqa: B018
    except Exception as ours:
        return f"refused: GPyTorch: {str(ours)[:60]}"
    return f"no reference: {type(error).__name__}: {str(error)[:60]}"


def _check(spec: Spec) -> str:
    try:
        model, new = make_model(spec)
    except InputError as error:
        return f"refused: {str(error)[:70]}"
    except NoModel as error:
        return f"refused: {str(error)[:70]}"
    held = model.held_data.inputs
    rows = tuple(torch.cat(pair) for pair in zip(held, new, strict=True))
    dtype, latents = getattr(torch, spec.dtype), model.calculus.num_latents
    try:
        priors = [prior_of(make_model(spec)[0], rows, kind) for kind in dict.fromkeys((dtype, torch.float64))]
    except Exception as error:
        return _without_reference(model, new, error)
    mean, kernel = priors[-1]
    priors = [priors[0], (mean, kernel + _evaluation_error(spec, kernel))]
    reference, other = (Reference(spec, *prior, density_of(spec), latents) for prior in priors)
    try:
        posterior = model(*new)
        joint, variance, mean = posterior.covariance_matrix, posterior.variance, posterior.mean
        latent_mean, solution = model.latent_mean(new if len(new) > 1 else new[0]), model.solution
    except (InputError, SolverError) as error:
        return f"refused: {str(error)[:70]}"
    except Exception as error:
        if _fails_by_itself(spec, rows):
            return f"refused: GPyTorch: {str(error)[:60]}"
        raise Wrong(f"raw {type(error).__name__}: {str(error)[:150]}") from error
    if not bool(torch.isfinite(reference.joint).all()):
        if bool(torch.isfinite(variance).all()):
            raise Wrong("finite variances of a kernel that is not finite")
        return "refused: GPyTorch: the kernel is not finite"
    mean = mean.reshape(-1, latents)
    made = Check(spec, model, solution, reference, other)
    made.means(mean, latent_mean)
    made.certificate()
    made.covariances(joint, variance.reshape(-1))
    made.evidence()
    try:
        made.predictive(new, mean, variance.reshape(-1))
    except (InputError, SolverError) as error:
        return f"refused: {str(error)[:70]}"
    return "right" if solution.status.converged else f"not converged: {solution.status.reason.name}"
