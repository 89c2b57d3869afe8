"""The values of a model's hyperparameters, as people know them."""

from __future__ import annotations

import gpytorch

_MOST = 64  # elements beyond which a parameter is a network's weights, and not read by people


def hyperparameters(model: gpytorch.Module) -> dict[str, list[float]]:
    """Values within their constraints by name, without GPyTorch's ``raw_``; parameters of many elements are left out."""
    found = {}
    for name, parameter, constraint in model.named_parameters_and_constraints():
        if parameter.numel() > _MOST:
            continue
        value = parameter.detach() if constraint is None else constraint.transform(parameter.detach())
        head, _, tail = name.rpartition(".")
        found[f"{head}.{tail.removeprefix('raw_')}".lstrip(".")] = value.reshape(-1).tolist()
    return found
