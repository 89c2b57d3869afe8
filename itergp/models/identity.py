"""What a result depends on, by name, so that two computations can be told apart."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from itergp._version import __version__
from itergp.operators import Prior, make_operator
from itergp.operators.rows import evenly_spaced

if TYPE_CHECKING:
    from itergp.models.nonconjugate_gp import NonConjugateGP

_PROBE_ROWS = 16
_HASH_BYTES = 2**24  # hashed at a time
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def identify(model: NonConjugateGP, **settings: Any) -> dict[str, Any]:
    """What a result depends on, by name: versions and kinds as text, data and hyperparameters by their SHA-256.

    Args:
        model: The model.
        **settings: Whatever else the result depends on.
    """
    noise = getattr(model.likelihood, "noise", None)  # fixed noise is neither a parameter nor a buffer
    named = {f"hyperparameter {name}": value for name, value in model.named_parameters()}
    named |= {f"buffer {name}": value for name, value in model.named_buffers()}
    named |= {"noise": noise} if torch.is_tensor(noise) else {}
    named |= {"train_targets": model.train_targets, "sample_weight": model.sample_weight}
    named |= {f"train_inputs {i}": value for i, value in enumerate(model.train_inputs)}
    kinds = {
        "the version of itergp": __version__,
        "the model's class": type(model).__qualname__,
        "the likelihood": type(model.likelihood).__qualname__,
        "the model's structure": hashlib.sha256(str(model).encode()).hexdigest(),
    }
    chosen = {"solver": model.solver, "approximation": model.approximation, "operator": model.operator_kind} | settings
    hashes = {name: None if value is None else _hash(value) for name, value in named.items()}
    texts = {name: _ADDRESS.sub("", repr(value)) for name, value in chosen.items()}
    return kinds | hashes | texts | {"the prior": _probe(model)}


def difference(theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[str, str, str] | None:
    """The first name whose values differ, with both, or None."""
    for name in [*ours, *theirs]:
        first, second = theirs.get(name), ours.get(name)
        if isinstance(first, list) and isinstance(second, list):
            same = len(first) == len(second) and torch.allclose(torch.tensor(first), torch.tensor(second), rtol=1e-3)
        else:
            same = first == second
        if not same:
            return name, _short(first), _short(second)
    return None


def _probe(model: NonConjugateGP) -> list[float]:
    """Prior means and kernel entries of a few rows: they notice what is neither a parameter nor in the structure."""
    rows = evenly_spaced(model.train_targets.shape[0], _PROBE_ROWS, torch.device("cpu"))
    with torch.no_grad():
        prior: Prior = model._prior(tuple(x[rows.to(x.device)] for x in model.train_inputs))
        entries = make_operator(prior.kernel, prior.features, num_kernels=prior.num_kernels, kind="dense").dense()
    return [round(value, 8) for value in torch.cat([prior.mean.reshape(-1), entries.reshape(-1)]).double().tolist()]


def _hash(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and content, without a copy of the whole."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    rows = tensor.detach().reshape(1, -1) if tensor.dim() == 0 else tensor.detach()
    step = max(1, _HASH_BYTES // max(1, rows[:1].numel() * rows.element_size()))
    for part in rows.split(step):
        digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "other values"
    return f"{value[:8]}..." if re.fullmatch(r"[0-9a-f]{64}", str(value)) else str(value)
