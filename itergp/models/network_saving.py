"""What is kept of a network's posterior: weights and directions as arrays, no code and no training data."""

from __future__ import annotations

import os
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from itergp.errors import InputError
from itergp.operators.linearisation import Rows
from itergp.persistence.files import read_file, write_file
from itergp.posterior.row_information import RowInformation
from itergp.posterior.softmax_information import SoftmaxInformation
from itergp.posterior.weights import DenseInformation, Information, LowRankInformation

_NETWORK, _LIKELIHOOD, _PROBE, _INFORMATION = "network.", "likelihood.", "probe.", "information."
_KIND = "network"


@dataclass(frozen=True)
class SavedNetwork:
    """What a file says of a posterior.

    Attributes:
        log_prior_precision: ``(G,)``.
        information: What the data said.
        probe: Inputs of a few rows.
        tempering: Of predictions.
    """

    log_prior_precision: Tensor
    information: Information
    probe: Rows
    tempering: float = 0.0


def save_network(
    path: str | os.PathLike[str],
    network: nn.Module,
    likelihood: nn.Module,
    log_prior_precision: Tensor,
    information: Information,
    probe: Rows,
    tempering: float,
) -> None:
    """Writes a posterior to one file; see ``NetworkGP.save``."""
    leaves, _ = tree_flatten(probe)
    keys = sorted(probe) if isinstance(probe, dict) else None
    tensors = {_NETWORK + name: value for name, value in network.state_dict().items()}
    tensors |= {_LIKELIHOOD + name: value for name, value in likelihood.state_dict().items()}
    named = [probe[key] for key in keys] if keys is not None else leaves
    tensors |= {f"{_PROBE}{i}": value for i, value in enumerate(named)}
    tensors |= {_INFORMATION + name: value for name, value in information.tensors().items()}
    tensors["log_prior_precision"] = log_prior_precision.detach()
    about = {
        "kind": _KIND,
        "likelihood": type(likelihood).__qualname__,
        "information": type(information).__name__,
        "keys": keys,
        "tuple": isinstance(probe, tuple),
        "tempering": str(tempering),  # which may be infinite
    }
    write_file(path, {name: value.contiguous() for name, value in tensors.items()}, about)


def load_network(path: str | os.PathLike[str], network: nn.Module, likelihood: nn.Module) -> SavedNetwork:
    """Reads a file, and gives network and likelihood the saved state; see ``NetworkGP.load``."""
    tensors, about = read_file(path)
    if about.get("kind") != _KIND:
        raise InputError(
            f"`path` must be a file that NetworkGP.save wrote. Got {str(path)!r}, of another kind of model."
        )
    if about["likelihood"] != type(likelihood).__qualname__:
        raise InputError(
            f"The model must have the saved one's likelihood, {about['likelihood']}. Got {type(likelihood).__qualname__}."
        )
    states = [(module, _within(tensors, prefix)) for module, prefix in ((network, _NETWORK), (likelihood, _LIKELIHOOD))]
    for module, state in states:
        own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        theirs = {name: tuple(value.shape) for name, value in state.items()}
        if own != theirs:
            differ = sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name))
            raise InputError(
                f"The network must be built as the saved one was. Got others of {differ[:5]}. Use the same class and sizes."
            )
    for module, state in states:
        module.load_state_dict(state)
    kinds: tuple[type[Information], ...] = (LowRankInformation, DenseInformation, RowInformation, SoftmaxInformation)
    kind = {one.__name__: one for one in kinds}[about["information"]]
    parts = _within(tensors, _PROBE)
    values = [parts[str(i)] for i in range(len(parts))]
    probe: Rows = values[0]
    if about["keys"] is not None:
        probe = dict(zip(about["keys"], values, strict=True))
    elif about["tuple"]:
        probe = tuple(values)
    information = kind.from_tensors(_within(tensors, _INFORMATION))
    return SavedNetwork(tensors["log_prior_precision"], information, probe, float(about.get("tempering", 0.0)))


def _within(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
