"""The process group of this package: operations of ``torch.distributed`` that end in a clear error, never in a hang."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from itergp.errors import InputError, SolverError

_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


class _Link:
    """The group made from a default group, so that its failure leaves the user's own groups alone."""

    group: Any = None
    parent: Any = None
    broken: bool = False


_link = _Link()


def in_process_group() -> bool:
    """Whether ``torch.distributed`` is initialised in this process."""
    return dist.is_available() and dist.is_initialized()


def many_processes() -> bool:
    """Whether this process is one of several.

    Raises:
        InputError: If torchrun started several that have not found each other yet.
    """
    if in_process_group():
        return dist.get_world_size() > 1
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "Processes must have joined a group before they share rows. Got several started by torchrun and no group. Call "
            'torch.distributed.init_process_group("gloo") first, or "nccl" for CUDA.'
        )
    return False


def connect(device: torch.device) -> tuple[int, int]:
    """Makes the group on first use, in every process at the same point; returns the own rank and the number of processes.

    Raises:
        InputError: If the backend cannot work on the device.
        SolverError: If the group was lost before.
    """
    parent = dist.group.WORLD
    backend = _BACKENDS.get(device.type, "gloo")
    if f"{device.type}:{backend}" not in str(dist.get_backend_config(parent)):
        raise InputError(
            f"Rows on {device.type} are shared by a process group with the {backend} backend. Got "
            f'{dist.get_backend_config(parent)!r}. Call torch.distributed.init_process_group("{backend}").'
        )
    if _link.parent is not parent:
        options = getattr(parent._get_backend(device), "options", None)  # type: ignore[union-attr]
        timeout = getattr(options, "_timeout", None)  # the user's, where the backend tells
        _link.parent, _link.broken = parent, False
        _link.group = guarded(dist.new_group, backend=backend, timeout=timeout)
    if _link.broken:
        raise SolverError(_LOST.format("the loss of an earlier operation"))
    return dist.get_rank(), dist.get_world_size()


def collective(operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls an operation of ``torch.distributed`` in the group.

    Raises:
        SolverError: If another process failed, was killed or took longer than the timeout.
    """
    if _link.broken or _link.parent is None or _link.parent is not dist.group.WORLD:
        raise SolverError(_LOST.format("no connection to them"))
    return guarded(operation, *args, group=_link.group, **kwargs)


def exchange(send: torch.Tensor | None, to: int, receive: torch.Tensor | None, source: int) -> None:
    """Sends a tensor to one process while another's is received; None for neither.

    Raises:
        SolverError: As ``collective``.
    """

    def both(group: Any) -> None:
        operations = []
        if send is not None:
            operations.append(dist.P2POp(dist.isend, send, to, group=group))
        if receive is not None:
            operations.append(dist.P2POp(dist.irecv, receive, source, group=group))
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()

    collective(both)


def guarded(operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls an operation; a lost connection closes this process's own, so that nobody waits for it."""
    try:
        return operation(*args, **kwargs)
    except RuntimeError as error:
        disconnect()
        raise SolverError(_LOST.format(str(error).split(" This is typically")[0])) from error


def disconnect() -> None:
    """Closes the connections: processes that wait for this one learn at once that it failed."""
    group, _link.group, _link.broken = _link.group, None, True
    if group is not None and in_process_group():
        dist.destroy_process_group(group)


_LOST = (
    "All processes of the group must take part until the end. Got: {}. Another process failed, was killed, or took longer than "
    "the timeout of the group; what it printed says why. Start the job again; give init_process_group a longer `timeout` if it "
    "was only slow."
)
