"""One file: safetensors for the arrays, JSON in its header for the rest, a checksum over both. Reading executes nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from itergp._version import __version__
from itergp.errors import InputError

FORMAT_VERSION = 2
_ABOUT, _CHECKSUM = "itergp", "checksum"
_AGAIN = "Save the model again, or copy the file again."


def write_file(path: str | os.PathLike[str], tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes arrays and what is to be known about them; an existing file is replaced in one step or not at all.

    Args:
        path: Where to.
        tensors: Arrays by name, on any device.
        about: Anything JSON can express.

    Raises:
        InputError: If the folder does not exist or cannot be written to.
    """
    target = Path(path)
    stored = _separate(tensors)
    text = json.dumps({"format": FORMAT_VERSION, "version": __version__, **about})
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        safetensors.torch.save_file(stored, draft, {_ABOUT: text, _CHECKSUM: _checksum(text, stored)})
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, target)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"`path` must be a file that can be written. Got {str(target)!r} ({_first_line(error)}). "
            "Choose another folder or make room."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def read_file(
    path: str | os.PathLike[str], *, name: str = "path", remedy: str = _AGAIN
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what ``write_file`` wrote; arrays arrive on the CPU.

    Args:
        path: The file.
        name: What the caller's argument is called, for errors.
        remedy: What to do about a damaged file, for errors.

    Returns:
        Arrays by name, and what is known about them.

    Raises:
        InputError: If there is no such file, or it is damaged, from another program, or from a newer version.
    """
    source = Path(path)
    if not source.is_file():
        raise InputError(f"`{name}` must be a saved model. Got {str(source)!r}, which is not a file. Check the name.")
    try:
        with safetensors.safe_open(source, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            about = _about(header, source, name, remedy)
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a mapping
    except OSError as error:
        raise InputError(
            f"`{name}` must be a file that can be read. Got {str(source)!r} ({_first_line(error)}). Check its permissions."
        ) from error
    except safetensors.SafetensorError as error:
        raise InputError(
            f"`{name}` must be a whole file that itergp saved. Got {str(source)!r}, which is damaged or of another kind "
            f"({_first_line(error)}). {remedy}"
        ) from error
    if header.get(_CHECKSUM) != _checksum(header[_ABOUT], tensors):
        raise InputError(
            f"`{name}` must be a whole file that itergp saved. Got {str(source)!r}, whose content does not match its "
            f"checksum: it is damaged. {remedy}"
        )
    return tensors, about


def _about(header: dict[str, str], source: Path, name: str, remedy: str) -> dict[str, Any]:
    if _ABOUT not in header:
        raise InputError(
            f"`{name}` must be a file that itergp saved. Got {str(source)!r}, a safetensors file of another program. "
            "Pass a file written by save()."
        )
    try:
        about = json.loads(header[_ABOUT])
        written = int(about["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"`{name}` must be a whole file that itergp saved. Got {str(source)!r}, whose header is damaged. {remedy}"
        ) from error
    if written > FORMAT_VERSION:
        raise InputError(
            f"`{name}` must be of file format {FORMAT_VERSION} or older, which itergp {__version__} reads. Got {str(source)!r} "
            f"of format {written}, written by itergp {about.get('version')}. Upgrade: `pip install --upgrade itergp`."
        )
    return about


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous arrays on the CPU that share no memory, as the format asks for."""
    separate, seen = {}, set()
    for name, tensor in sorted(tensors.items()):
        value = tensor.detach().cpu().contiguous()
        shared = value.untyped_storage().data_ptr() in seen
        partial = value.untyped_storage().nbytes() != value.numel() * value.element_size()
        value = value.clone() if shared or partial else value
        seen.add(value.untyped_storage().data_ptr())
        separate[name] = value
    return separate


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
