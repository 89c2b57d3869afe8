"""What a saved model holds: parameters, data and posterior, so that predictions need no second conditioning."""

from __future__ import annotations

import math
import os
import sys
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gpytorch
import torch
from gpytorch.likelihoods.noise_models import FixedGaussianNoise
from torch import Tensor

from itergp.diagnostics import Trace
from itergp.errors import InputError, ItergpWarning
from itergp.models.files import read_file, write_file
from itergp.models.identity import Identity, prior_difference
from itergp.parallel import ALL_ROWS
from itergp.posterior.local_actions import LocalActions
from itergp.posterior.precision import LowRankPrecision
from itergp.solvers import Certificate, Reason, Solution, Status
from itergp.solvers.iterncgp.action_buffer import pack_buffer, unpack_buffer
from itergp.solvers.packing import Packed, pack_space, unpack_space

if TYPE_CHECKING:
    from itergp.models.nonconjugate_gp import NonConjugateGP

_PYTHON = "{}.{}".format(*sys.version_info)
_STATE, _DATA, _POSTERIOR = "state.", "data.", "posterior."
_OPTIONAL = ("curvature", "support")
_ARRAYS = ("representer_weights", "latent_values", "latent_covariance")
_SCALARS = (
    "objective",
    "approximation",
    "kernel_passes",
    "kernel_entries",
    "seconds",
    "log_marginal_likelihood",
    "elbo",
    "variational_residual",
)
# Settings of a model that are neither arrays nor given by how it is built; those it does not have are left out.
_SETTINGS = ("approximation", "missing_targets", "tempering")


_INFINITY = "infinity"  # JSON knows none


def _plain(value: Any) -> Any:
    return _INFINITY if value == math.inf else value


def save_model(model: NonConjugateGP, path: str | os.PathLike[str]) -> None:
    """Writes a model to one file; see ``NonConjugateGP.save``."""
    tensors, about = pack(model)
    solution = model._current_solution()
    rows = ALL_ROWS if solution is None else solution.rows
    failure: InputError | None = None
    if rows.first:
        try:
            write_file(path, tensors, {"kind": "model", **about})
        except InputError as error:
            failure = error
    if rows.all_reduce_any(failure is not None):  # nobody goes on before the file is complete
        raise failure or InputError(
            f"The first process must be able to write {str(path)!r}. Got an error there. Its message says what to do."
        )


def load_model(model: NonConjugateGP, path: str | os.PathLike[str]) -> None:
    """Restores a model from a file; see ``NonConjugateGP.load``."""
    tensors, about = read_file(path)
    if about.get("kind") != "model":
        raise InputError(
            f"`path` must be a file that model.save wrote. Got {str(path)!r}, which an estimator wrote. "
            "Read it with itergp.sklearn.load(path)."
        )
    unpack(model, tensors, about)


def pack(model: NonConjugateGP) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A model as arrays by name and what JSON can express."""
    state = model.state_dict()
    for name, value in state.items():
        if not torch.is_tensor(value):
            raise InputError(
                f"A model's state must be tensors to be saved. Got {type(value).__name__} in {name!r}. "
                "Pickle the model, or register a buffer instead."
            )
    tensors = {_STATE + name: value for name, value in state.items()}
    tensors |= {f"{_DATA}input.{i}": x for i, x in enumerate(model.train_inputs)}
    tensors[f"{_DATA}targets"] = model.train_targets
    noise = _fixed_noise(model)
    if noise is not None:
        tensors[f"{_DATA}noise"] = noise.noise
    if model.sample_weight is not None:
        tensors[f"{_DATA}sample_weight"] = model.sample_weight
    about: dict[str, Any] = {
        "class": type(model).__qualname__,
        "likelihood": type(model.likelihood).__qualname__,
        "settings": {name: _plain(getattr(model, name)) for name in _SETTINGS if hasattr(model, name)},
        "libraries": {"torch": str(torch.__version__), "gpytorch": gpytorch.__version__, "python": _PYTHON},
    }
    solution = model._current_solution()
    if solution is not None:
        arrays, about["posterior"] = pack_solution(solution.gather())
        about["prior"] = Identity.of(model).prior
        tensors |= arrays
    return tensors, about


def unpack(model: NonConjugateGP, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Gives a model the parameters, data and posterior of another; the model is left as it was if they do not fit.

    A posterior of another prior, which the arrays do not show, is left out with a warning.

    Raises:
        InputError: If the model was built differently.
    """
    state = {name.removeprefix(_STATE): value for name, value in tensors.items() if name.startswith(_STATE)}
    _check_fit(model, state, about)
    inputs = [tensors[f"{_DATA}input.{i}"] for i in range(sum(name.startswith(f"{_DATA}input.") for name in tensors))]
    device = model.train_inputs[0].device
    model.to(dtype=inputs[0].dtype)
    model.load_state_dict(state)
    for name, value in about["settings"].items():
        setattr(model, name, math.inf if value == _INFINITY else value)
    noise, weight = _fixed_noise(model), tensors.get(f"{_DATA}sample_weight")
    if noise is not None:
        noise.noise = tensors[f"{_DATA}noise"].to(device)
    model._restore(
        tuple(x.to(device, copy=True) for x in inputs),  # out of the file's memory, into the model's own
        tensors[f"{_DATA}targets"].to(device, copy=True),
        None if weight is None else weight.to(device, copy=True),
        None,
    )
    if "posterior" in about and _has_prior(model, about):
        model._adopt(unpack_solution(tensors, about["posterior"], device))


def _has_prior(model: NonConjugateGP, about: dict[str, Any]) -> bool:
    """Whether a model with the saved parameters has the prior of the saved posterior; warns if not."""
    same_python = about["libraries"].get("python") == _PYTHON
    found = prior_difference(about.get("prior", {}), Identity.of(model).prior, code=same_python)
    if found is None:
        return True
    name, theirs, ours = found
    warnings.warn(
        f"The model must be built as the saved one was for its posterior to be used. Got another one, where {name} differs: "
        f"{theirs} in the file, {ours} here. The posterior is found again when it is asked for.",
        ItergpWarning,
        stacklevel=4,
    )
    return False


def _check_fit(model: NonConjugateGP, state: dict[str, Tensor], about: dict[str, Any]) -> None:
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(own.keys() | theirs.keys()):
        if own.get(name) != theirs.get(name):
            raise InputError(
                f"The model must be built as the saved one was, a {about['class']} with {about['likelihood']}. Got "
                f"{name!r} of shape {own.get(name, 'none')} where the file has {theirs.get(name, 'none')}. "
                "Use the same class, kernel and likelihood."
            )
    likelihood = type(model.likelihood).__qualname__
    if likelihood != about["likelihood"]:
        raise InputError(
            f"The model must have the saved one's likelihood, {about['likelihood']}. Got {likelihood}. "
            "Build the model with the same likelihood."
        )


def _fixed_noise(model: NonConjugateGP) -> FixedGaussianNoise | None:
    """Known noise variances of the rows, which GPyTorch keeps neither as parameters nor as buffers."""
    noise = getattr(model.likelihood, "noise_covar", None)
    return noise if isinstance(noise, FixedGaussianNoise) else None


def pack_solution(solution: Solution) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A posterior, less its search space, as arrays by name and what JSON can express."""
    arrays = {_POSTERIOR + name: getattr(solution, name) for name in _ARRAYS}
    for name in _OPTIONAL:
        if (value := getattr(solution, name)) is not None:
            arrays[_POSTERIOR + name] = value
    precision = solution.precision
    for name in ("actions", "gram", "factor"):
        arrays[f"{_POSTERIOR}precision.{name}"] = getattr(precision, name)
    if (local := solution.local) is not None:
        arrays[f"{_POSTERIOR}local.root"] = local.root
        arrays[f"{_POSTERIOR}local.whitened"] = local.whitened
    about = {name: getattr(solution, name) for name in _SCALARS}
    about["num_neighbours"] = 0 if solution.local is None else solution.local.num_neighbours
    about["status"] = {"reason": solution.status.reason.name, "detail": solution.status.detail}
    certificate = solution.certificate
    norm = None if certificate is None else certificate.norm_squared
    about["norm_squared"] = norm if norm is None or math.isfinite(norm) else str(norm)  # JSON knows no infinity
    about["trace"] = solution.trace.to_dict()
    return arrays, about


def unpack_solution(tensors: dict[str, Tensor], about: dict[str, Any], device: torch.device) -> Solution:
    """The posterior that ``pack_solution`` took apart."""
    arrays: dict[str, Any] = {name: tensors[_POSTERIOR + name].to(device) for name in _ARRAYS}
    for name in _OPTIONAL:
        value = tensors.get(_POSTERIOR + name)
        arrays[name] = None if value is None else value.to(device)
    precision = [tensors[f"{_POSTERIOR}precision.{name}"].to(device) for name in ("actions", "gram", "factor")]
    local = None
    if about["num_neighbours"] > 0:
        root, whitened = (tensors[f"{_POSTERIOR}local.{name}"].to(device) for name in ("root", "whitened"))
        local = LocalActions(root, whitened, about["num_neighbours"])
    return Solution(
        local=local,
        **arrays,
        **{name: about[name] for name in _SCALARS},
        precision=LowRankPrecision(*precision),
        status=Status(Reason[about["status"]["reason"]], about["status"]["detail"]),
        certificate=None if about["norm_squared"] is None else Certificate(float(about["norm_squared"])),
        trace=Trace.from_dict(about["trace"]),
    )


def pack_warm(solution: Solution) -> Packed:
    """A posterior with the search space or the actions that another solve starts from."""
    packed = Packed(*pack_solution(solution))
    if solution.space is not None:
        packed.add("space", pack_space(solution.space))
    if solution.actions is not None:
        packed.add("actions", pack_buffer(solution.actions))
        packed.values["limit"] = solution.actions.limit
    return packed


def unpack_warm(packed: Packed, device: torch.device) -> Solution:
    """The posterior that ``pack_warm`` took apart: a start for a kernel that differs from its own."""
    solution = unpack_solution(packed.arrays, packed.values, device)
    space = unpack_space(packed.part("space")) if "space" in packed.values else None
    actions = None
    if "actions" in packed.values:
        actions = unpack_buffer(solution.representer_weights, packed.values["limit"], packed.part("actions"))
    return replace(solution, space=space, actions=actions)
