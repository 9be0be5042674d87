"""Weights that somebody else trained: a local file, or one from the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nextscale import checkpoint
from nextscale.integrity.pickles import why_refused

_HUB = "hub:"
_PROMISE = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


def find_weights(source: str, *, purpose: str) -> Path:
    """The file that a source names, fetched from the hub if need be. Arguments and errors are those of
    `read_weights`.
    """
    if not source:
        raise ValueError(f"no {purpose} given: name a .safetensors or .pth file, or {_HUB}OWNER/NAME/FILE")
    path = _from_hub(source) if source.startswith(_HUB) else Path(source)
    if not path.is_file():
        raise ValueError(f"{purpose}: {source} is not a file: give a .safetensors or .pth file")
    return path


def weights_digest(source: str, *, purpose: str) -> str:
    """SHA-256 of the file that a source names, in hexadecimal.

    Raises:
        ValueError: as `find_weights`, or the name ends in the start of another digest (``-6726825d.pth``),
            which is how PyTorch's own downloads say what they hold.
    """
    path = find_weights(source, purpose=purpose)
    digest = checkpoint.digest(path)
    promised = _PROMISE.search(path.name)
    if promised and not digest.startswith(promised[1]):
        raise ValueError(
            f"{purpose}: {source} is damaged or another file: its name promises a SHA-256 that starts with "
            f"{promised[1]}, it has {digest[:8]}: fetch it again"
        )
    return digest


def read_weights(source: str, *, purpose: str) -> dict[str, Tensor]:
    """The tensors of a file, by name; nothing in it is executed.

    Args:
        source: path of a .safetensors file or a PyTorch state dict, or ``hub:OWNER/NAME/FILE``.
        purpose: what they are for, for messages.

    Raises:
        ValueError: no source given, no such file, not tensors by name, or no way to the hub.
    """
    path = find_weights(source, purpose=purpose)
    if path.suffix == ".safetensors":
        return checkpoint.read_tensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make the reader fail in any way
        if refusal := why_refused(path):
            raise ValueError(f"{purpose}: {refusal}") from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{purpose}: {source} was not loaded ({reason}): give a file with tensors only"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{purpose}: {source} is no state dict: expected tensors by name")
    return dict(content)


def _from_hub(source: str) -> Path:
    owner, _, rest = source.removeprefix(_HUB).partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file):
        raise ValueError(f"{source!r} names no file of the hub: expected {_HUB}OWNER/NAME/FILE")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ValueError(
            f"{source} needs the package huggingface_hub: pip install 'nextscale[hub]', or give a local file"
        ) from error
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file))
    except Exception as error:  # no network, no such file, no access: the package has an error for each
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{source} could not be fetched ({reason}): give a local file") from error
