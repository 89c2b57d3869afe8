"""Estimators in one file each, complete: arguments, labels, names of columns, scaling and model."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itergp import solvers
from itergp.errors import InputError
from itergp.models.files import read_file, write_file
from itergp.models.saving import pack, unpack
from itergp.sklearn.kernels import category_columns
from itergp.sklearn.scaling import Scaling

if TYPE_CHECKING:
    from itergp.sklearn.base import GPEstimator

_MODEL, _SCALING = "model.", "scaling."
_CUSTOM = {"module": True}  # stands for a kernel that JSON cannot express


def save_estimator(estimator: GPEstimator, path: str | os.PathLike[str]) -> None:
    """Writes a fitted estimator to one file; see ``GPClassifier.save``."""
    tensors, about = pack(estimator.model_)
    tensors = {_MODEL + name: value for name, value in tensors.items()}
    for kind, scaling in estimator._scalings().items():
        for field in dataclasses.fields(Scaling):
            tensors[f"{_SCALING}{kind}.{field.name}"] = torch.from_numpy(np.array(getattr(scaling, field.name)))
    names = getattr(estimator, "feature_names_in_", None)
    described = {
        "class": type(estimator).__name__,
        "arguments": {name: _as_json(name, value) for name, value in estimator.get_params(deep=False).items()},
        "n_features_in": estimator.n_features_in_,
        "feature_names_in": None if names is None else [str(name) for name in names],
        "classes": _pack_labels(estimator.classes_) if hasattr(estimator, "classes_") else None,
        "levels": _pack_labels(estimator.levels_) if hasattr(estimator, "levels_") else None,
        "kernel_passes": estimator.kernel_passes_,
        "evidence": estimator.log_marginal_likelihood_value_,
    }
    write_file(path, tensors, {"kind": "estimator", "estimator": described, "model": about})


def load_estimator(
    path: str | os.PathLike[str], known: Mapping[str, type[GPEstimator]], *, kernel: Any = None, device: Any = None
) -> GPEstimator:
    """Reads what ``save_estimator`` wrote; see ``itergp.sklearn.load``."""
    tensors, about = read_file(path)
    if about.get("kind") != "estimator":
        raise InputError(
            f"`path` must be a file that an estimator wrote. Got {str(path)!r}, which model.save wrote. "
            "Build the model and call its load(path)."
        )
    described = about["estimator"]
    if described["class"] not in known:
        raise InputError(
            f"`path` must hold one of {', '.join(known)}. Got {str(path)!r} with a {described['class']}. "
            f"Load it with itergp.sklearn.load(path)."
        )
    arguments = {name: _from_json(value) for name, value in described["arguments"].items()}
    if described["arguments"]["kernel"] == _CUSTOM:
        if kernel is None:
            raise InputError(
                f"`kernel` must be passed for a model that was saved with a kernel module of your own. Got "
                f"{str(path)!r} alone. Build the same kernel and call load(path, kernel=...)."
            )
        arguments["kernel"] = kernel
    if device is not None:
        arguments["device"] = device
    estimator = known[described["class"]](**arguments)
    _restore(estimator, tensors, about)
    return estimator


def _restore(estimator: GPEstimator, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    described = about["estimator"]
    estimator.n_features_in_ = described["n_features_in"]
    if described["feature_names_in"] is not None:
        estimator.feature_names_in_ = np.array(described["feature_names_in"], dtype=object)
    for name in ("classes", "levels"):
        if described[name] is not None:
            setattr(estimator, f"{name}_", _unpack_labels(described[name]))
    for kind in ("inputs", "targets"):
        fields = [field.name for field in dataclasses.fields(Scaling)]
        if f"{_SCALING}{kind}.{fields[0]}" in tensors:
            arrays = [tensors[f"{_SCALING}{kind}.{name}"].numpy() for name in fields]
            setattr(estimator, "_scaling" if kind == "inputs" else "_target_scaling", Scaling(*arrays))
    estimator._codes = category_columns(estimator.kernel, estimator.n_features_in_)
    stored = {name.removeprefix(_MODEL): value for name, value in tensors.items() if name.startswith(_MODEL)}
    estimator.model_ = estimator._skeleton(stored["data.input.0"], stored["data.targets"])
    unpack(estimator.model_, stored, about["model"])
    estimator.model_.eval()
    estimator._learned_rows = estimator.model_.train_targets.shape[0]
    estimator.result_ = None
    estimator.kernel_passes_ = described["kernel_passes"]
    estimator.log_marginal_likelihood_value_ = described["evidence"]


# --------------------------------------------------------------------- arguments
def _as_json(name: str, value: Any) -> Any:
    if name == "kernel" and value is not None and not isinstance(value, str):
        return _CUSTOM
    if name == "random_state" and not isinstance(value, int):
        return None
    if name == "device" and value is not None:
        return str(value)
    if name == "solver" and dataclasses.is_dataclass(value) and type(value).__name__ in solvers.__all__:
        settings = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"solver": type(value).__name__, "settings": _as_json("solver", settings)}
    if name == "class_weight" and isinstance(value, Mapping):
        labels = np.array(list(value))
        return {"labels": _pack_labels(labels), "weights": [float(weight) for weight in value.values()]}
    if isinstance(value, np.generic):
        return value.item()
    try:
        json.dumps(value)
    except TypeError as error:
        raise InputError(
            f"Arguments must be numbers, text, lists or dictionaries of them to be saved. Got `{name}` with {value!r}. "
            "Pickle the estimator instead."
        ) from error
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"solver", "settings"} and value["solver"] in solvers.__all__:
        return getattr(solvers, value["solver"])(**value["settings"])
    if isinstance(value, dict) and set(value) == {"labels", "weights"}:
        return dict(zip(_unpack_labels(value["labels"]).tolist(), value["weights"], strict=True))
    return None if value == _CUSTOM else value


def _pack_labels(labels: NDArray[Any]) -> dict[str, Any]:
    kind = "object" if labels.dtype.kind == "O" else labels.dtype.str
    return {"dtype": kind, "values": labels.tolist()}


def _unpack_labels(packed: dict[str, Any]) -> NDArray[Any]:
    return np.array(packed["values"], dtype=packed["dtype"])
