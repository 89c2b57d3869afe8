"""GPyTorch's own likelihoods, taken as they are.

``as_likelihood`` returns the calculus of any ``gpytorch.likelihoods.Likelihood``: closed forms where they are known,
automatic differentiation otherwise. The wrapped module keeps its parameters; nothing is copied.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import gpytorch.likelihoods as gl
import torch
from gpytorch.likelihoods.noise_models import FixedGaussianNoise
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from itergp.errors import InputError
from itergp.likelihoods.base import Likelihood, Observed
from itergp.likelihoods.bernoulli import BernoulliLikelihood
from itergp.likelihoods.categorical import CategoricalLikelihood
from itergp.likelihoods.gaussian import GaussianLikelihood
from itergp.likelihoods.integrals import expected_softmax
from itergp.likelihoods.mixtures import QuadratureMixture
from itergp.likelihoods.parameters import ConstrainedParameter
from itergp.likelihoods.poisson import PoissonLikelihood
from itergp.likelihoods.predictive import CategoricalPredictive, NormalPredictive
from itergp.likelihoods.quadrature import second_moment_nodes, trapezoid
from itergp.likelihoods.robust import LaplaceLikelihood, StudentTLikelihood
from itergp.likelihoods.targets import as_floats, check_outputs, check_targets
from itergp.numerics.blocks import psd_root
from itergp.numerics.spectral import absolute

_SPACING, _REACH = 0.25, 8.0  # of the nodes of a prediction, in standard deviations of the latent value
_MOST_NODES, _MOST_VALUES = 2_048, 2**25


def as_likelihood(likelihood: gl.Likelihood, inputs: tuple[Tensor, ...] | None = None) -> Likelihood:
    """The calculus of a likelihood, ours or GPyTorch's.

    Args:
        likelihood: The likelihood.
        inputs: Training inputs, which some of GPyTorch's likelihoods look at.

    Raises:
        InputError: If it is not a likelihood of a row's targets given its latent values alone: one of several outputs,
            of transformed targets, or with a noise that needs the inputs.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, gl.Likelihood):
        got = f"the class {likelihood.__name__}" if isinstance(likelihood, type) else type(likelihood).__name__
        raise InputError(
            "`likelihood` must be an itergp or GPyTorch likelihood. "
            f"Got {got}. Use for example itergp.likelihoods.BernoulliLikelihood()."
        )
    _refuse(likelihood)
    if type(likelihood) is gl.SoftmaxLikelihood and likelihood.mixing_weights is None:
        return CategoricalLikelihood(likelihood.num_classes)
    if type(likelihood) is gl.BernoulliLikelihood:
        return BernoulliLikelihood(link="probit")
    if type(likelihood) is gl.PoissonLikelihood:
        return PoissonLikelihood(link="softplus")
    if type(likelihood) is gl.HadamardGaussianLikelihood:
        return _Hadamard(likelihood, inputs)
    return _adapter(likelihood)(likelihood)


def _adapter(likelihood: gl.Likelihood) -> Any:
    """The adapter of a likelihood's type, also of a subclass that adds no noise of its own to that of every row."""
    kind = type(likelihood)
    if kind not in _ADAPTERS and isinstance(likelihood, gl.DirichletClassificationLikelihood):
        return _Dirichlet
    if kind not in _ADAPTERS and isinstance(likelihood, gl.FixedNoiseGaussianLikelihood):
        base = gl.FixedNoiseGaussianLikelihood
        if kind.forward is not base.forward or kind._shaped_noise_covar is not base._shaped_noise_covar:
            raise InputError(
                "`likelihood` with the noise of every row must add it as FixedNoiseGaussianLikelihood does. Got "
                f"{kind.__name__}, which overrides that. Write an itergp.likelihoods.Likelihood with exchangeable = "
                "False."
            )
        return _FixedNoise
    return _ADAPTERS.get(kind, AutomaticLikelihood)


def _refuse(likelihood: gl.Likelihood) -> None:
    """Likelihoods that are not those of one output per row, given its latent values, are not taken for one that is."""
    name = type(likelihood).__name__
    if type(likelihood) is gl.MultitaskGaussianLikelihood:
        sizes = {"task_noise_covar_factor": 2}
        if any(parameter.dim() != sizes.get(key, 1) for key, parameter in likelihood.named_parameters()):
            raise InputError(
                f"Noises of {name} must be one per output. Got a batch of such. Leave out batch_shape, or give the model a "
                "batch of targets of that shape."
            )
        if 0 < likelihood.rank < likelihood.num_tasks and not likelihood.has_global_noise:
            raise InputError(
                f"The noise of {name} must be positive definite. Got rank {likelihood.rank} for {likelihood.num_tasks} outputs "
                "without global noise. Leave out has_global_noise=False."
            )
        return
    if isinstance(likelihood, (gl.LikelihoodList, gl._MultitaskGaussianLikelihoodBase)):
        raise InputError(
            f"`likelihood` must be one likelihood of a row's outputs. Got {name}. Use MultitaskGaussianLikelihood, or "
            "itergp.likelihoods.IndependentOutputsLikelihood with a likelihood for each output."
        )
    noise = getattr(likelihood, "noise_covar", None)
    if isinstance(noise, gl.HeteroskedasticNoise):
        raise InputError(
            f"`likelihood` must know its noise from the latent values. Got {name} with HeteroskedasticNoise, which "
            "needs the inputs. Use itergp.likelihoods.HeteroscedasticGaussianLikelihood, whose noise is a second "
            "latent function."
        )
    dirichlet = isinstance(likelihood, gl.DirichletClassificationLikelihood)
    if isinstance(noise, FixedGaussianNoise) and noise.noise.dim() != 1 and not dirichlet:
        raise InputError(
            f"The noise of {name} must have shape (N,). Got {tuple(noise.noise.shape)}. Give the model a batch of "
            "targets, one data set for each, or build one model per batch element."
        )
    for parameter in ("noise", "deg_free"):
        value = None if isinstance(noise, FixedGaussianNoise) else getattr(likelihood, parameter, None)
        if torch.is_tensor(value) and value.numel() != 1 and not isinstance(likelihood, gl.HadamardGaussianLikelihood):
            raise InputError(
                f"`{parameter}` of {name} must be one number for all rows. Got shape {tuple(value.shape)}. Leave out "
                "batch_shape, or give the model a batch of targets of that shape."
            )


class AutomaticLikelihood(Likelihood):
    """Any GPyTorch likelihood by automatic differentiation of its conditional distribution.

    The curvature is the absolute value of the Hessian (its eigenvalues made positive); where it vanishes, the outer
    product of the gradient replaces it. Concavity is not known, so there is no certificate.

    Args:
        wrapped: The GPyTorch likelihood.
    """

    log_concave = False
    curvature = "absolute hessian"
    latent_width = 0.5  # how narrow it is, is not known

    def __init__(self, wrapped: gl.Likelihood) -> None:
        super().__init__()
        self.wrapped = wrapped
        latents = [getattr(wrapped, name, None) for name in ("num_latents", "num_features", "num_tasks")]
        self.num_latents = next((int(n) for n in latents if n is not None), 1)

    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> Distribution:
        """The wrapped likelihood's conditional distribution."""
        return self.wrapped.forward(function_samples, *args, **kwargs)

    def _conditional(self, f: Tensor) -> Distribution:
        return self.wrapped.forward(f.squeeze(-1) if self.num_latents == 1 else f)

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Targets must be finite and in the support of the conditional distribution.

        Raises:
            InputError: If they are not.
        """
        name = type(self.wrapped).__name__
        check_targets(targets, name)
        dtype = next((p.dtype for p in self.wrapped.parameters()), torch.get_default_dtype())
        with torch.no_grad():
            conditional = self._of_latents_alone(targets.new_zeros(*targets.shape, self.num_latents, dtype=dtype))
            support = getattr(conditional, "support", None)
            inside = support.check(targets) if support is not None else torch.ones_like(targets, dtype=torch.bool)
        if not bool(inside.all()):
            bad = targets[~inside.expand(targets.shape)][0].item()
            raise InputError(
                f"`train_targets` must be in the support of {name} ({support}). Got {bad}. Re-encode them."
            )
        return targets

    def _of_latents_alone(self, f: Tensor) -> Distribution:
        """The conditional distribution, which must be one of every row, and need nothing else than latent values."""
        name = type(self.wrapped).__name__
        try:
            conditional = self._conditional(f)
        except (TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"`forward` of {name} must give the distribution of targets from the latent values alone. Got an "
                f"error: {error}. Write an itergp.likelihoods.Likelihood whose targets have what else it needs as a "
                "column."
            ) from error
        if conditional.batch_shape != f.shape[:-1] or conditional.event_shape:
            raise InputError(
                f"`forward` of {name} must return a distribution of one number per row, batch shape "
                f"{tuple(f.shape[:-1])}. Got batch shape {tuple(conditional.batch_shape)} and event shape "
                f"{tuple(conditional.event_shape)}. Use one model per output."
            )
        return conditional

    def log_density(self, f: Tensor, targets: Tensor) -> Tensor:
        """``log p(y | f)`` of the wrapped likelihood, in the dtype of its parameters."""
        f = f.to(next((p.dtype for p in self.wrapped.parameters()), f.dtype))
        return self._conditional(f).log_prob(targets.to(f.dtype))

    def derivatives(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and positive semi-definite curvature by automatic differentiation."""
        with torch.enable_grad():
            point = f.detach().requires_grad_(True)
            total = self.log_density(point, targets).sum()
            (gradient,) = torch.autograd.grad(total, point, create_graph=True)
            columns = [self._row(gradient[..., c].sum(), point) for c in range(self.num_latents)]
        gradient = gradient.detach()
        return gradient, _absolute(-torch.stack(columns, dim=-1), gradient)

    @staticmethod
    def _row(total: Tensor, point: Tensor) -> Tensor:
        if not total.requires_grad:
            return torch.zeros_like(point)
        (row,) = torch.autograd.grad(total, point, retain_graph=True, allow_unused=True)
        return torch.zeros_like(point) if row is None else row

    def predictive(self, mean: Tensor, covariance: Tensor) -> Distribution:
        """Mixture of the conditional distribution over equidistant nodes (C = 1), 65 or more, or 256 fixed samples."""
        if self.num_latents == 1:
            scale = covariance[..., 0].clamp_min(0).sqrt()
            nodes, weights = self._nodes(scale)
            return QuadratureMixture(weights, self.wrapped.forward(mean + scale * nodes))
        half = torch.randn(128, mean.shape[-1], generator=torch.Generator().manual_seed(0)).to(mean)
        samples = mean.unsqueeze(1) + torch.matmul(torch.cat([half, -half]), psd_root(covariance).mT)
        return QuadratureMixture(mean.new_full((256,), 1 / 256), self.wrapped.forward(samples))

    def _nodes(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes and weights ``(S,)`` for latent deviations ``(M, 1)``: to where densities need not be finite any more."""
        most = min(_MOST_NODES, max(1, _MOST_VALUES // max(1, scale.shape[0])))
        widths = float(scale.detach().nan_to_num().max()) / self.latent_width if scale.numel() else 0.0
        spacing = max(min(_SPACING, 1.0 / max(widths, 1e-6)), 2.0 * _REACH / most)
        nodes, weights = trapezoid(min(spacing, _SPACING), like=scale)
        near = nodes.abs() <= _REACH
        return nodes[near], weights[near] / weights[near].sum()


def _absolute(hessian: Tensor, gradient: Tensor) -> Tensor:
    """Positive semi-definite stand-in for a batch of Hessians ``(..., C, C)``."""
    hessian = torch.nan_to_num(hessian, nan=0.0)  # second derivatives of some densities underflow to 0/0 far out
    curvature = hessian.abs() if hessian.shape[-1] == 1 else absolute(hessian)
    flat = curvature.abs().amax((-1, -2), keepdim=True) < torch.finfo(hessian.dtype).tiny
    return torch.where(flat, gradient.unsqueeze(-1) * gradient.unsqueeze(-2), curvature)


class _MixedSoftmax(AutomaticLikelihood):
    """Softmax of linear mixtures of the latent functions, ``softmax(M f)``; log-concave."""

    observes: ClassVar[Observed] = "label"
    log_concave, curvature = True, "hessian"

    @property
    def num_classes(self) -> int:
        """Number of classes, which need not be that of the latent functions."""
        return self.wrapped.num_classes

    def _classes(self, f: Tensor) -> tuple[CategoricalLikelihood, Tensor]:
        return CategoricalLikelihood(self.wrapped.num_classes), self.wrapped.mixing_weights.to(f.dtype)

    def validate_targets(self, targets: Tensor) -> Tensor:
        return CategoricalLikelihood(self.wrapped.num_classes).validate_targets(targets)

    def missing(self, targets: Tensor) -> Tensor:
        return CategoricalLikelihood(self.wrapped.num_classes).missing(targets)

    def log_density(self, f: Tensor, targets: Tensor) -> Tensor:
        classes, mixing = self._classes(f)
        return classes.log_density(f @ mixing.mT, targets)

    def derivatives(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        classes, mixing = self._classes(f)
        g, W = classes.derivatives(f @ mixing.mT, targets)
        return g @ mixing, mixing.mT @ W @ mixing

    def predictive(self, mean: Tensor, covariance: Tensor) -> CategoricalPredictive:
        _, mixing = self._classes(mean)
        return CategoricalPredictive(*expected_softmax(mean @ mixing.mT, mixing @ covariance @ mixing.mT))


class _Wrapped(ConstrainedParameter):
    """A parameter that is read and set on the wrapped likelihood."""

    def __get__(self, module: Any, owner: type) -> Any:
        return self if module is None else getattr(module.wrapped, self.name)

    def __set__(self, module: Any, value: float | Tensor) -> None:
        setattr(module.wrapped, self.name, value)


class _Gaussian(GaussianLikelihood):
    """GPyTorch's Gaussian likelihood; the noise is the wrapped module's."""

    noise = _Wrapped()

    def __init__(self, wrapped: gl.GaussianLikelihood) -> None:
        Likelihood.__init__(self)  # no parameters of its own
        self.wrapped = wrapped


class _GaussianWithMissing(_Gaussian):
    """GPyTorch's Gaussian likelihood of targets that may be NaN: such rows say nothing."""

    accepts_missing = True


class _NoiseByRow(_Gaussian):
    """Gaussian noise whose variance differs from row to row."""

    @abstractmethod
    def _row_noise(self, like: Tensor) -> Tensor:
        """Variances of the training rows, in shape and dtype of latent values ``(..., N)``."""

    def log_density(self, f: Tensor, targets: Tensor) -> Tensor:
        latent = f.squeeze(-1)
        noise = self._row_noise(latent)
        return -0.5 * ((targets.to(f.dtype) - latent).square() / noise + noise.log() + math.log(2.0 * math.pi))

    def derivatives(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        latent = f.squeeze(-1)
        precision = self._row_noise(latent).reciprocal().expand(latent.shape)
        return ((targets.to(f.dtype) - latent) * precision).unsqueeze(-1), precision[..., None, None]


class _GaussianOutputs(Likelihood):
    """GPyTorch's Gaussian noise of several outputs, one latent function each, with a covariance between outputs or without.

    Targets ``(N, C)``, NaN for an output of a row that was not observed.
    """

    quadratic = True
    masks_targets: ClassVar[bool] = True

    def __init__(self, wrapped: gl.MultitaskGaussianLikelihood) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.num_latents = wrapped.num_tasks

    def _noise(self, like: Tensor) -> Tensor:
        """Covariances of the outputs' noise ``(C, C)``."""
        noise = torch.zeros(self.num_latents, self.num_latents, dtype=like.dtype, device=like.device)
        if self.wrapped.has_task_noise and self.wrapped.rank == 0:
            noise = noise + torch.diag(self.wrapped.task_noises.to(like.dtype))
        elif self.wrapped.has_task_noise:
            noise = noise + self.wrapped.task_noise_covar.to(like.dtype)
        if self.wrapped.has_global_noise:
            noise = noise + self.wrapped.noise.to(like.dtype) * torch.eye(self.num_latents).to(like)
        return noise

    def _precision(self, covariance: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Of what was observed: ``(N, C, C)``, zero elsewhere, and log-determinants of its covariance ``(N,)``.

        Args:
            covariance: ``(C, C)`` or ``(N, C, C)``.
            seen: ``(N, C)``.
        """
        if bool(seen.all()):
            factor = torch.linalg.cholesky(covariance)
            inverse = torch.cholesky_inverse(factor).expand(*seen.shape, -1)
        else:
            both = seen.unsqueeze(-1) & seen.unsqueeze(-2)
            factor = torch.linalg.cholesky(torch.where(both, covariance, torch.eye(self.num_latents).to(covariance)))
            inverse = torch.where(both, torch.cholesky_inverse(factor), 0.0)
        return inverse, 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _density(self, mean: Tensor, covariance: Tensor, targets: Tensor) -> Tensor:
        seen = ~targets.isnan()
        precision, log_determinant = self._precision(covariance, seen)
        residual = torch.where(seen, targets.to(mean.dtype) - mean, 0.0)
        square = (residual * torch.einsum("nij,...nj->...ni", precision, residual)).sum(-1)
        return -0.5 * (square + log_determinant + math.log(2.0 * math.pi) * seen.sum(-1))

    def missing(self, targets: Tensor) -> Tensor:
        """None: what is missing in a row is left out output by output."""
        return torch.zeros(targets.shape[0], dtype=torch.bool, device=targets.device)

    def validate_targets(self, targets: Tensor) -> Tensor:
        """One number per row and output; NaN where nothing was observed."""
        check_outputs(targets, self.num_latents, "MultitaskGaussianLikelihood")
        valid = as_floats(targets)
        check_targets(valid[~valid.isnan()], "MultitaskGaussianLikelihood")
        return valid

    def log_density(self, f: Tensor, targets: Tensor) -> Tensor:
        return self._density(f, self._noise(f), targets)

    def derivatives(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        seen = ~targets.isnan()
        precision, _ = self._precision(self._noise(f), seen)
        residual = torch.where(seen, targets.to(f.dtype) - f, 0.0)
        gradient = torch.einsum("nij,...nj->...ni", precision, residual)
        return gradient, precision.expand(*f.shape, self.num_latents)

    @property
    def num_nodes(self) -> int:
        """Two per output."""
        return 2 * self.num_latents

    def standard_nodes(self, like: Tensor, seed: int = 0, skip: int = 0) -> tuple[Tensor, Tensor]:
        """Two nodes per output: exact for a quadratic function."""
        return second_moment_nodes(like)

    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> Distribution:
        noise = self._noise(function_samples)
        if self.wrapped.rank > 0:
            return MultivariateNormal(function_samples, noise, validate_args=False)
        scale = noise.diagonal().sqrt()
        return Independent(Normal(function_samples, scale, validate_args=False), 1, validate_args=False)

    def predictive(self, mean: Tensor, covariance: Tensor) -> Distribution:
        """Joint distribution of a row's outputs: batch shape ``(M,)``, event shape ``(C,)``."""
        return MultivariateNormal(mean, covariance + self._noise(mean), validate_args=False)

    def predictive_log_density(self, mean: Tensor, covariance: Tensor, targets: Tensor) -> Tensor:
        """Joint log-density of the outputs that were observed ``(N,)``."""
        return self._density(mean, covariance + self._noise(mean), targets)

    def marginal(self, function_dist: Any, *args: Any, **kwargs: Any) -> Any:
        return self.wrapped.marginal(function_dist, *args, **kwargs)


class _FixedNoise(_NoiseByRow):
    """Known noise variance for every training row; as in GPyTorch, new rows get only the learned second noise."""

    exchangeable = False

    def check_rows(self, num_rows: int, targets: Tensor) -> None:
        """As many rows as noises."""
        known = self.wrapped.noise_covar.noise.shape[-1]
        if num_rows != known:
            raise InputError(
                f"FixedNoiseGaussianLikelihood must hold the noise of every training row. Got {known} noise(s) and "
                f"{num_rows} row(s). Replace the likelihood by one with the noise of all rows."
            )

    def _row_noise(self, like: Tensor) -> Tensor:
        known = self.wrapped.noise_covar.noise.to(like.dtype)
        second = torch.as_tensor(self.wrapped.second_noise, dtype=like.dtype, device=like.device)
        return known + second if known.shape[-1] == like.shape[-1] else second.expand(like.shape[-1:])

    def predictive(self, mean: Tensor, covariance: Tensor) -> NormalPredictive:
        # Of new rows, even if they happen to be as many as the training rows.
        second = torch.as_tensor(self.wrapped.second_noise, dtype=mean.dtype, device=mean.device)
        variance = covariance[..., 0, 0].clamp_min(0.0) + second
        return NormalPredictive(mean[..., 0], variance.sqrt(), validate_args=False)


class _Dirichlet(Likelihood):
    """GPyTorch's Dirichlet classification, refused where it is used: it replaces labels by regression targets."""

    def __init__(self, wrapped: gl.DirichletClassificationLikelihood) -> None:
        super().__init__()
        self.wrapped = wrapped

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise InputError(
            "`likelihood` must be one of the labels themselves. Got DirichletClassificationLikelihood, which replaces "
            "them by one regression target per class. Use itergp.likelihoods.CategoricalLikelihood(num_classes) with "
            "the labels."
        )

    log_density = derivatives = predictive = forward = marginal = initialise = _refuse

    def check_rows(self, num_rows: int, targets: Tensor) -> None:
        """Labels, and not what they are replaced by."""
        if torch.is_tensor(targets) and targets.dim() != 1:
            self._refuse()

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Labels as they are."""
        return targets


class _Hadamard(_NoiseByRow):
    """One noise variance per task; the task of a row is one of its inputs."""

    predictive_options = ("task",)

    def __init__(self, wrapped: gl.HadamardGaussianLikelihood, inputs: tuple[Tensor, ...] | None) -> None:
        super().__init__(wrapped)
        self._tasks = None if inputs is None else self.observation_at(inputs)["task"]
        self._is_part = False

    def take(self, rows: Tensor | slice) -> _Hadamard:
        made = _Hadamard(self.wrapped, None)
        made._tasks = None if self._tasks is None else self._tasks[rows]
        made._is_part = True
        return made

    def observation_at(self, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
        column, size = self.wrapped.task_feature_index, self.wrapped.num_tasks
        if column is not None and inputs[0].shape[-1] > 1:
            found = [inputs[0][:, column]]
        else:
            single = [x[:, 0] for x in inputs if x.shape[-1] == 1]
            found = [x for x in single if not x.is_floating_point()] or single
        tasks = [x for x in found if bool(((x == x.round()) & (x >= 0) & (x < size)).all())]
        if len(tasks) != 1:
            raise InputError(
                f"HadamardGaussianLikelihood needs one input of a single column with the task of each row, "
                f"0..{size - 1}. Got "
                f"{len(tasks)} such input(s) among {len(inputs)}. Pass (x, task) with an integer task, or give the "
                f"likelihood "
                "task_feature_index."
            )
        return {"task": tasks[0].to(torch.int64, copy=True)}  # memory of its own

    def _row_noise(self, like: Tensor) -> Tensor:
        if self._tasks is None or self._tasks.shape[-1] != like.shape[-1]:
            raise InputError(
                f"HadamardGaussianLikelihood needs the task of all rows. Got {like.shape[-1]} rows whose tasks are not "
                "known. Take the observations of a model, or some of them by Observations.take."
            )
        return self._noise_of(self._tasks, like)

    def _noise_of(self, task: Tensor, like: Tensor) -> Tensor:
        return self.wrapped.noise.reshape(-1)[task.long().to(like.device)].to(like.dtype)

    def predictive(self, mean: Tensor, covariance: Tensor, *, task: int | Tensor | None = None) -> NormalPredictive:
        task = self._tasks if task is None and self._is_part else task  # rows that were chosen are not new ones
        if task is None:
            raise InputError(
                "HadamardGaussianLikelihood needs the task of new rows. Got none. Call model.predict, which takes "
                "them from its inputs, or pass task=."
            )
        latent = mean[..., 0]
        variance = covariance[..., 0, 0].clamp_min(0.0) + self._noise_of(torch.as_tensor(task), latent)
        return NormalPredictive(latent, variance.sqrt(), validate_args=False)

    def predictive_log_density(self, mean: Tensor, covariance: Tensor, targets: Tensor) -> Tensor:
        return self.predictive(mean, covariance, task=self._tasks).log_prob(targets)

    def marginal(self, function_dist: Any, *args: Any, **kwargs: Any) -> Any:
        return self.wrapped.marginal(function_dist, *args, **kwargs)


class _StudentT(StudentTLikelihood):
    """GPyTorch's Student-t likelihood; the parameters are the wrapped module's."""

    noise = _Wrapped()
    deg_free = _Wrapped()

    def __init__(self, wrapped: gl.StudentTLikelihood) -> None:
        Likelihood.__init__(self)
        self.wrapped = wrapped


class _Laplace(LaplaceLikelihood):
    """GPyTorch's Laplace likelihood; the noise is the wrapped module's."""

    noise = _Wrapped()

    def __init__(self, wrapped: gl.LaplaceLikelihood) -> None:
        Likelihood.__init__(self)
        self.wrapped = wrapped


_ADAPTERS: dict[type, Any] = {
    gl.SoftmaxLikelihood: _MixedSoftmax,
    gl.GaussianLikelihood: _Gaussian,
    gl.GaussianLikelihoodWithMissingObs: _GaussianWithMissing,
    gl.FixedNoiseGaussianLikelihood: _FixedNoise,
    gl.DirichletClassificationLikelihood: _Dirichlet,
    gl.MultitaskGaussianLikelihood: _GaussianOutputs,
    gl.StudentTLikelihood: _StudentT,
    gl.LaplaceLikelihood: _Laplace,
}
