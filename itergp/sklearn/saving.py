"""Estimators in one file each, complete: arguments, labels, names of columns, scaling and model."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itergp import solvers
from itergp.errors import InputError
from itergp.models import NonConjugateGP
from itergp.models.saving import model_state
from itergp.persistence import StateDict, from_state, to_state
from itergp.persistence.files import read_file, write_file
from itergp.sklearn.boosting import BoostedTrees
from itergp.sklearn.scaling import Scaling
from itergp.tables import TableEncoder

_MODEL, _SCALING, _BOOSTING = "model.", "scaling.", "boosting."
_CUSTOM = {"module": True}  # stands for a kernel that JSON cannot express


@dataclass(frozen=True)
class SavedEstimator:
    """What a file says of a fitted estimator, its model aside.

    Attributes:
        name: Its class.
        arguments: Those that it was made with.
        learned: Attributes by name that scikit-learn knows: numbers, labels, names of columns; None where there are none.
        encoder: Of tables; None in files of earlier versions, which took numbers only.
        scalings: Of inputs and targets, by ``"inputs"`` and ``"targets"``.
        model: State of the model.
        boosting: Trees that the prior mean is, or None.
    """

    name: str
    arguments: dict[str, Any]
    learned: dict[str, Any]
    encoder: TableEncoder | None
    scalings: dict[str, Scaling]
    model: StateDict
    boosting: BoostedTrees | None = None


def write_estimator(
    path: str | os.PathLike[str],
    name: str,
    arguments: dict[str, Any],
    learned: dict[str, Any],
    encoder: TableEncoder,
    scalings: dict[str, Scaling],
    model: NonConjugateGP,
    boosting: BoostedTrees | None = None,
) -> None:
    """Writes a fitted estimator to one file; see ``GPClassifier.save``, and ``SavedEstimator`` for the arguments."""
    saved = model_state(model)
    tensors = {_MODEL + key: value for key, value in saved.arrays.items()}
    for kind, scaling in scalings.items():
        for field in dataclasses.fields(Scaling):
            tensors[f"{_SCALING}{kind}.{field.name}"] = torch.from_numpy(np.array(getattr(scaling, field.name)))
    trees = None if boosting is None else to_state(boosting)
    if trees is not None:
        tensors |= {_BOOSTING + key: value for key, value in trees.arrays.items()}
    described = {
        "class": name,
        "arguments": {key: _as_json(key, value) for key, value in arguments.items()},
        **{key: _labels_as_json(value) if isinstance(value, np.ndarray) else value for key, value in learned.items()},
    }
    about = {"kind": "estimator", "estimator": described, "encoder": to_state(encoder).values, "model": saved.values}
    if trees is not None:
        about["boosting"] = trees.values
    write_file(path, tensors, about)


def read_estimator(
    path: str | os.PathLike[str], known: Iterable[str], *, kernel: Any = None, device: Any = None
) -> SavedEstimator:
    """Reads what ``write_estimator`` wrote; see ``itergp.sklearn.load``.

    Args:
        path: The file.
        known: Names of classes, one of which it must hold.
        kernel: The kernel, if it was not one by name.
        device: Where to; default where it was.
    """
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
    learned = {
        name: _labels_from_json(value) if isinstance(value, dict) else value
        for name, value in described.items()
        if name not in ("class", "arguments")
    }
    stored = {name.removeprefix(_MODEL): value for name, value in tensors.items() if name.startswith(_MODEL)}
    model = StateDict(stored, about["model"] | {"format": about["format"]})
    encoder = from_state(TableEncoder, StateDict({}, about["encoder"])) if "encoder" in about else None
    trees = None
    if "boosting" in about:
        arrays = {name.removeprefix(_BOOSTING): value for name, value in tensors.items() if name.startswith(_BOOSTING)}
        trees = from_state(BoostedTrees, StateDict(arrays, about["boosting"]))
    return SavedEstimator(described["class"], arguments, learned, encoder, _scalings(tensors), model, trees)


def _scalings(tensors: dict[str, Tensor]) -> dict[str, Scaling]:
    found = {}
    fields = [field.name for field in dataclasses.fields(Scaling)]
    for kind in ("inputs", "targets"):
        if f"{_SCALING}{kind}.{fields[0]}" in tensors:
            found[kind] = Scaling(*(tensors[f"{_SCALING}{kind}.{name}"].numpy() for name in fields))
    return found


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
        return {"labels": _labels_as_json(labels), "weights": [float(weight) for weight in value.values()]}
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
        return dict(zip(_labels_from_json(value["labels"]).tolist(), value["weights"], strict=True))
    return None if value == _CUSTOM else value


def _labels_as_json(labels: NDArray[Any]) -> dict[str, Any]:
    kind = "object" if labels.dtype.kind == "O" else labels.dtype.str
    return {"dtype": kind, "values": labels.tolist()}


def _labels_from_json(plain: dict[str, Any]) -> NDArray[Any]:
    return np.array(plain["values"], dtype=plain["dtype"])
