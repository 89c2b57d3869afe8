"""What a saved model holds: parameters, data and posterior, so that predictions need no second conditioning."""

from __future__ import annotations

import math
import os
import sys
import warnings
from typing import Any

import gpytorch
import torch
from gpytorch.likelihoods.noise_models import FixedGaussianNoise
from torch import Tensor

from itergp.errors import InputError, ItergpWarning
from itergp.models.checkpointing import read_solution, solution_state
from itergp.models.identity import identity_of
from itergp.models.protocol import Model
from itergp.parallel import ALL_ROWS
from itergp.persistence import StateDict
from itergp.persistence.files import read_file, write_file
from itergp.persistence.identity import prior_difference

_PYTHON = "{}.{}".format(*sys.version_info)
_STATE, _DATA, _POSTERIOR = "state.", "data.", "posterior"
# Settings of a model that are neither arrays nor given by how it is built; those it does not have are left out.
_SETTINGS = ("approximation", "missing_targets", "tempering")


_INFINITY = "infinity"  # JSON knows none


def _plain(value: Any) -> Any:
    return _INFINITY if value == math.inf else value


def save_model(model: Model, path: str | os.PathLike[str]) -> None:
    """Writes a model to one file; see ``NonConjugateGP.save``."""
    saved = model_state(model)
    solution = model.current_solution
    rows = ALL_ROWS if solution is None else solution.rows
    failure: InputError | None = None
    if rows.first:
        try:
            write_file(path, saved.arrays, {"kind": "model", **saved.values})
        except InputError as error:
            failure = error
    if rows.all_reduce_any(failure is not None):  # nobody goes on before the file is complete
        raise failure or InputError(
            f"The first process must be able to write {str(path)!r}. Got an error there. Its message says what to do."
        )


def load_model(model: Model, path: str | os.PathLike[str]) -> None:
    """Restores a model from a file; see ``NonConjugateGP.load``."""
    tensors, about = read_file(path)
    if about.get("kind") != "model":
        raise InputError(
            f"`path` must be a file that model.save wrote. Got {str(path)!r}, which an estimator wrote. "
            "Read it with itergp.sklearn.load(path)."
        )
    restore_model(model, StateDict(tensors, about))


def model_state(model: Model) -> StateDict:
    """A model's parameters, data and posterior, and how it was built."""
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
    found = StateDict(tensors, about)
    solution = model.current_solution
    if solution is not None:
        about["prior"] = identity_of(model).prior
        found.add_section(_POSTERIOR, solution_state(solution.gather()))
    return found


def restore_model(model: Model, saved: StateDict) -> None:
    """Gives a model the parameters, data and posterior of another; the model is left as it was if they do not fit.

    A posterior of another prior, which the arrays do not show, is left out with a warning.

    Raises:
        InputError: If the model was built differently.
    """
    tensors, about = saved.arrays, saved.values
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
    model.replace_data(
        tuple(x.to(device, copy=True) for x in inputs),  # out of the file's memory, into the model's own
        tensors[f"{_DATA}targets"].to(device, copy=True),
        None if weight is None else weight.to(device, copy=True),
    )
    if _POSTERIOR in about and has_prior(model, about):
        known = StateDict(tensors, {_POSTERIOR: _upgraded(about)}).section(_POSTERIOR)
        model.adopt(read_solution(known, device))


def has_prior(model: Model, about: dict[str, Any]) -> bool:
    """Whether a model with the saved parameters has the prior of the saved posterior; warns if not."""
    same_python = about["libraries"].get("python") == _PYTHON
    found = prior_difference(about.get("prior", {}), identity_of(model).prior, code=same_python)
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


def _check_fit(model: Model, state: dict[str, Tensor], about: dict[str, Any]) -> None:
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


def _fixed_noise(model: Model) -> FixedGaussianNoise | None:
    """Known noise variances of the rows, which GPyTorch keeps neither as parameters nor as buffers."""
    noise = getattr(model.likelihood, "noise_covar", None)
    return noise if isinstance(noise, FixedGaussianNoise) else None


def _upgraded(about: dict[str, Any]) -> dict[str, Any]:
    """What a file says of its posterior, in the present format."""
    values = about[_POSTERIOR]
    if about["format"] > 1:
        return values
    norm, neighbours = values["norm_squared"], values["num_neighbours"]
    return values | {
        "certificate": None if norm is None else {"norm_squared": float(norm)},
        "precision": {},
        "local": {"num_neighbours": neighbours} if neighbours else None,
    }
