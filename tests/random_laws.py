"""What holds for any random model without a reference: two ways to the same posterior, and derivatives."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from linear_operator import to_dense
from random_models import EXACT, FORWARDS, SOLVERS, RandomGP, Spec, inputs_of, make_model, missing_rows, num_latents
from torch import Tensor

from itergp.models import GP, NonConjugateGP, QuantileTransform, Standardize
from itergp.solvers import Solution

_KINKS = ("0.5", "laplacian", "piecewise", "tied", "grid", "skip", "index", "categorical", "ordered", "hamming")
_ROUGH_ROWS = ("letters", "categories", "grid", "duplicates", "far")


class Skip(Exception):
    """The law says nothing about this model."""


class Broken(AssertionError):
    """A law that does not hold."""


@dataclass(frozen=True)
class Belief:
    """Marginals at new inputs, float64, and how they were found."""

    mean: Tensor
    variance: Tensor
    solution: Solution

    @classmethod
    def of(cls, model: NonConjugateGP, new: tuple[Tensor, ...]) -> Belief:
        """A model's."""
        with torch.no_grad():
            posterior = model(*new)
            return cls(posterior.mean.flatten().double(), posterior.variance.flatten().double(), model.solution)


def _require_same(spec: Spec, first: Belief, second: Belief, largest: float) -> None:
    """Two posteriors of the same thing are no farther apart than certificates and residuals say."""
    pair = (first.solution, second.solution)
    if not all(s.status.converged and s.certificate is not None for s in pair):
        raise Skip("not converged, or without a certificate")
    if spec.approximation == "variational" and num_latents(spec) > 1:
        raise Skip("samples are those of numbered rows")
    q = sum(s.certificate.norm_squared**0.5 for s in pair if s.certificate is not None)
    residual = sum(s.variational_residual or 0.0 for s in pair)
    rounding = {"float64": 1e-5, "float32": 3e-3}[spec.dtype] * (10.0 if "inducing" in str(spec.kernel) else 1.0)
    widest = torch.maximum(first.variance, second.variance).clamp_min(0.0)
    allowed = 1.01 * largest**0.5 * q + 3.0 * residual * widest.sqrt()
    allowed = allowed + rounding * (first.mean.abs().max() + largest**0.5)
    _require("mean", (first.mean - second.mean).abs(), allowed)
    if spec.solver in EXACT:
        allowed = (10.0 * rounding + 6.0 * residual) * widest + rounding * largest
        _require("variance", (first.variance - second.variance).abs(), allowed)


def _require(what: str, error: Tensor, allowed: Tensor) -> None:
    if not bool((error <= allowed).all()):
        raise Broken(f"{what}: off by {float(error.max()):.3g}, allowed {float(allowed.max()):.3g}")


def _largest(model: NonConjugateGP, new: tuple[Tensor, ...]) -> float:
    """The largest prior variance at new inputs."""
    with torch.no_grad():
        return float(to_dense(model.forward(*new).lazy_covariance_matrix).diagonal(dim1=-1, dim2=-2).max())


def _like(spec: Spec, model: RandomGP, x: Tensor, y: Tensor, weight: Tensor | None, **options: Any) -> RandomGP:
    """The same model of other rows."""
    options = {"solver": SOLVERS[spec.solver](), "approximation": spec.approximation, **options}
    options.setdefault("missing_targets", spec.missing)
    likelihood = copy.deepcopy(model.likelihood)
    made = RandomGP(inputs_of(spec, x, 0), y, likelihood, FORWARDS[spec.forward], sample_weight=weight, **options)
    made.mean_module, made.covar_module = copy.deepcopy(model.mean_module), copy.deepcopy(model.covar_module)
    return made.to(x.dtype).eval()


def _rows(spec: Spec, model: RandomGP) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs, targets and weights, of a model that knows no more of a row."""
    if spec.likelihood == "gl hadamard" or "fixed" in spec.likelihood:
        raise Skip("the likelihood knows rows")
    return model.held_data.inputs[0], model.train_targets, model.sample_weight


# -------------------------------------------------------------------------- laws
def saved(spec: Spec) -> None:
    """What was saved predicts the same in a model that loads it."""
    model, new = make_model(spec)
    first = Belief.of(model, new)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.safetensors")
        second = Belief.of(make_model(spec)[0].load(Path(folder) / "model.safetensors"), new)
    rounding = {"float64": 1e-8, "float32": 1e-3}[spec.dtype]
    for ours, theirs in ((first.mean, second.mean), (first.variance, second.variance)):
        _require("saved", (ours - theirs).abs(), rounding * ours.abs().max())


def permuted(spec: Spec) -> None:
    """The order of the rows does not matter."""
    model, new = make_model(spec)
    x, y, weight = _rows(spec, model)
    order = torch.randperm(x.shape[0], generator=torch.Generator().manual_seed(spec.seed))
    other = _like(spec, model, x[order], y[order], None if weight is None else weight[order])
    _require_same(spec, Belief.of(model, new), Belief.of(other, new), _largest(model, new))


def doubled(spec: Spec) -> None:
    """A row that is given twice is a row of twice the weight."""
    model, new = make_model(spec)
    x, y, weight = _rows(spec, model)
    weight, half = torch.ones_like(x[:, 0]) if weight is None else weight, (x.shape[0] + 1) // 2
    twice = _like(spec, model, *(torch.cat([t, t[:half]]) for t in (x, y, weight)))
    once = _like(spec, model, x, y, torch.cat([2.0 * weight[:half], weight[half:]]))
    _require_same(spec, Belief.of(once, new), Belief.of(twice, new), _largest(model, new))


def dropped(spec: Spec) -> None:
    """A row whose target is missing is a row that is not there."""
    if not spec.missing:
        raise Skip("nothing is missing")
    model, new = make_model(spec)
    x, y, weight = _rows(spec, model)
    kept = ~missing_rows(spec)
    fewer = _like(spec, model, x[kept], y[kept], None if weight is None else weight[kept], missing_targets=False)
    _require_same(spec, Belief.of(model, new), Belief.of(fewer, new), _largest(model, new))


def imagined(spec: Spec) -> None:
    """A fantasy is a model of all rows."""
    model, new = make_model(spec)
    x, y, _ = _rows(spec, model)
    if x.shape[0] < 7:
        raise Skip("too few rows")
    fewer, whole = _like(spec, model, x[:-2], y[:-2], None), _like(spec, model, x, y, None)
    Belief.of(fewer, new)
    _require_same(
        spec, Belief.of(fewer.get_fantasy_model(x[-2:], y[-2:]), new), Belief.of(whole, new), _largest(model, new)
    )


def transformed(spec: Spec) -> None:
    """An input transform is a model of transformed inputs."""
    text = str(spec.kernel)
    if spec.forward != "kernel" or any(name in text for name in ("cylindrical", "index", "categorical", "ordered")):
        raise Skip("the kernel minds")
    model, new = make_model(spec)
    x, y, weight = _rows(spec, model)
    transform = (Standardize if spec.seed % 2 else QuantileTransform)(x.double()).to(x.dtype)

    def made(inputs: Tensor, **options: Any) -> GP:
        parts = {"mean": copy.deepcopy(model.mean_module), "kernel": copy.deepcopy(model.covar_module)}
        options |= {"solver": SOLVERS[spec.solver](), "approximation": spec.approximation, "sample_weight": weight}
        likelihood = copy.deepcopy(model.likelihood)
        return GP(inputs, y, likelihood, missing_targets=spec.missing, **parts, **options).eval()

    first, second = made(x, input_transform=transform), made(transform(x))
    there = (transform(new[0]),)
    _require_same(spec, Belief.of(first, new), Belief.of(second, there), _largest(second, there))


def batched(spec: Spec) -> None:
    """The elements of a batch are models by themselves."""
    if spec.batch:
        raise Skip("kernels have a batch of their own")
    model, new = make_model(spec)
    data = _rows(spec, model)
    pairs = [data, tuple(None if t is None else t.flip(0) if t is not data[0] else t for t in data)]
    x, y, weight = (None if a is None else torch.stack([a, b]) for a, b in zip(*pairs, strict=True))
    both = _like(spec, model, x, y, weight)
    with torch.no_grad():
        posterior = both(new[0].expand(2, *new[0].shape))
    for index, rows in enumerate(pairs):
        single = _like(spec, model, *rows)
        mean, variance = (t[index].flatten().double() for t in (posterior.mean, posterior.variance))
        element = Belief(mean, variance, both.batch_elements[index].solution)
        _require_same(spec, element, Belief.of(single, new), _largest(model, new))


def sloping(spec: Spec) -> None:
    """Derivatives of the mean in the inputs are those of finite differences, where kernels have no kinks."""
    text = str(spec.kernel)
    if spec.dtype == "float32" or spec.new < 2 or spec.inputs in _ROUGH_ROWS or any(k in text for k in _KINKS):
        raise Skip("kinks, or too much rounding")
    model, new = make_model(spec)
    x, others = new[0][:1].clone(), tuple(t[:1] for t in new[1:])

    def value(at: Tensor) -> Tensor:
        return model(at, *others).mean.reshape(-1)[0]

    with torch.enable_grad():
        point = x.clone().requires_grad_(True)
        at_point = value(point)
        # A constant kernel and mean look at no input, and autograd says so.
        slope = torch.autograd.grad(at_point, point)[0] if at_point.requires_grad else torch.zeros_like(point)
    rounding = 1e-12 * float(model.solution.representer_weights.abs().sum()) * _largest(model, (x, *others))
    errors = []
    with torch.no_grad():
        for step in (1e-3, 1e-4, 1e-5, 1e-6):
            moved = [step * row for row in torch.eye(x.shape[1], dtype=x.dtype)]
            found = torch.stack([(value(x + d) - value(x - d)) / (2.0 * step) for d in moved])
            error, size = float((found - slope).abs().max()), float(slope.abs().max())
            errors.append(error - 1e-3 * size - rounding / step)
    if min(errors) > 1e-7:
        raise Broken(f"slope: off by {min(errors):.3g} of {size:.3g}")


LAWS: dict[str, Callable[[Spec], None]] = {
    law.__name__: law for law in (saved, permuted, doubled, dropped, imagined, transformed, batched, sloping)
}
