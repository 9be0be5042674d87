"""What a pickle would run, without running it.

Special here: PyTorch refuses a pickle that holds more than tensors but names at most one reason; here the
pickle is taken apart, not executed, to name all that it would have called.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections import deque
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import BinaryIO

#: What every saved state dict names: its container and the functions that put tensors together.
_HARMLESS = re.compile(r"collections\.OrderedDict|torch\.(\w*Storage|Size)|torch\._utils\._rebuild_\w+")
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLES_OF_OLD_FORMAT = 5  # magic number, protocol, system, object, keys of the storages that follow


def why_refused(path: Path) -> str:
    """What to say of a file saved by torch that would run code, naming that; empty: it would run none."""
    refused = executable_names(path)
    if not refused:
        return ""
    more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
    return (
        f"{path} was not loaded, because it would run code: it holds {', '.join(refused[:5])}{more}; "
        "give a file with tensors only, as torch.save(model.state_dict(), path) writes it"
    )


def executable_names(path: Path) -> list[str]:
    """Functions and classes that the pickles of a file name, beyond those of every state dict; runs none."""
    import torch

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
