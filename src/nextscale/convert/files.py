"""Published ``.pth`` files, read without running anything that is in them.

Special here: PyTorch refuses a pickle that holds more than tensors but names at most one reason; here the
pickle is taken apart, not executed, to name all that it would have called.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections import deque
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from nextscale.convert.layout import from_released
from nextscale.generate.generator import Generator

#: What every saved state dict names: its container and the functions that put tensors together.
_HARMLESS = re.compile(r"collections\.OrderedDict|torch\.(\w*Storage|Size)|torch\._utils\._rebuild_\w+")
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLES_OF_OLD_FORMAT = 5  # magic number, protocol, system, object, keys of the storages that follow


def convert_files(
    tokenizer: Path, *, prior: Path | None, out: Path, patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None, unit_codes: bool = False,
) -> Generator:  # fmt: skip
    """Convert published files to a model folder, whole or not at all.

    Args:
        tokenizer: the tokenizer's file, or a trainer's file that holds both models.
        prior: the transformer's file or a trainer's file, which may be the same; None for a tokenizer alone.
        out: the folder to write; it may hold an older model, but nothing else.
        patch_nums: as for `from_released`, likewise below.
        num_heads: heads of the transformer.
        unit_codes: the tokenizer was trained with ``using_znorm``.

    Returns:
        The model that was written.

    Raises:
        ValueError: a file cannot be read or does not fit, or the folder holds other files.
    """
    tokenizer_content = read_released_file(tokenizer)
    prior_content = None
    if prior is not None:
        prior_content = tokenizer_content if prior == tokenizer else read_released_file(prior)
    try:
        generator = from_released(
            tokenizer_content, prior_content,
            patch_nums=patch_nums, num_heads=num_heads, unit_codes=unit_codes,
        )  # fmt: skip
    except ValueError as error:
        given = str(tokenizer) if prior is None else f"{tokenizer} with {prior}"
        raise ValueError(f"{given} cannot be converted: {error}") from error
    generator.save(out)
    return generator


def read_released_file(path: Path) -> dict[str, Any]:
    """What a ``.pth`` file holds: tensors by their published names, or the dict that the trainer saves.

    Raises:
        ValueError: no such file, no checkpoint, or one that would run code when loaded, which it names.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give a published .pth checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make the reader fail in any way
        if refused := _executable_names(path):
            more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
            raise ValueError(
                f"{path} was not loaded, because it would run code: it holds {', '.join(refused[:5])}{more}; "
                "give a file with tensors only, as torch.save(model.state_dict(), path) writes it"
            ) from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} is not a readable PyTorch checkpoint ({reason}): give another") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}: expected a state dict, tensors by name")
    return dict(content)


def _executable_names(path: Path) -> list[str]:
    """Functions and classes that the pickles of a file name, beyond those of every state dict; runs none."""
    with path.open("rb") as file:
        zipped = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
        file.seek(0)
        if not zipped:
            return _beyond_tensors(_named_globals(file))
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except (UnpicklingError, ValueError, RuntimeError, EOFError):  # opcodes that torch.save does not write
        return _beyond_tensors(_named_globals(BytesIO(_zipped_pickle(path))))


def _zipped_pickle(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [name for name in archive.namelist() if name.endswith("data.pkl")]
            return archive.read(inside[0]) if inside else b""
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError):
        return b""


def _beyond_tensors(found: Sequence[str]) -> list[str]:
    names = {name.replace("__builtin__.", "builtins.") for name in found}  # as Python 2 called it
    return sorted(name for name in names if not _HARMLESS.fullmatch(name))


def _named_globals(stream: BinaryIO) -> list[str]:
    """What the pickles at the start of a stream import, as "module.name", as far as they can be read."""
    found: list[str] = []
    try:
        for _ in range(_PICKLES_OF_OLD_FORMAT):
            _collect_globals(stream, found)
    except (ValueError, OverflowError, MemoryError):  # the end of the pickles
        pass
    return found


def _collect_globals(stream: BinaryIO, found: list[str]) -> None:
    """Add the imports of one pickle, following strings through the memo, where STACK_GLOBAL finds names."""
    strings: deque[str] = deque(["?", "?"], maxlen=2)
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        kind = opcode.name
        if kind in ("GLOBAL", "INST"):
            found.append(str(argument).replace(" ", "."))
        elif kind == "STACK_GLOBAL":
            found.append(".".join(strings))
        elif kind == "MEMOIZE":
            memo[len(memo)] = strings[-1]
        elif kind.endswith("PUT"):
            memo[int(argument or 0)] = strings[-1]
        elif kind.endswith("GET"):
            strings.append(memo.get(int(argument or 0), "?"))
        elif isinstance(argument, str):
            strings.append(argument)
