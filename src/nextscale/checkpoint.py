"""Files that are whole or absent: tensors as safetensors, everything else as JSON, every file with its
digest.

Special here: a folder is written beside its place, synced, then renamed, so a reader never meets half of
it; a file is read only if its SHA-256 is the recorded one. Nothing executable is ever written or loaded.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

#: The file in a folder that holds the digests of the others.
DIGESTS = "digests.json"
#: The file in a folder whose lock says that a process works there.
LOCK = ".lock"


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to fill, so that readers see the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all."""
    with new_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """`write_file` of readable JSON."""
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; on success it takes the place of ``path``, otherwise it vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    retired = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        for item in temporary.rglob("*"):
            if item.is_file():
                _sync(item)
        os.chmod(temporary, 0o755)
        _sync(temporary)
        if path.exists():
            path.rename(retired)
        temporary.rename(path)
        _sync(path.parent)
    finally:
        if retired.exists() and not path.exists():  # the last renaming failed
            retired.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


@contextmanager
def held_folder(path: Path, refusal: str) -> Iterator[None]:
    """Make a folder where it is missing, and keep other processes out while the block runs.

    The hold ends with the process, however it ends. Raises ValueError with ``refusal`` when another
    one has it.
    """
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(refusal) from error
        yield
    finally:
        os.close(descriptor)


def write_digests(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Record the digest of every file of a folder in it; those that are ``known`` are not computed again."""
    files = sorted(item for item in folder.iterdir() if item.is_file() and item.name != DIGESTS)
    known = known or {}
    write_json(folder / DIGESTS, {item.name: known.get(item.name) or digest(item) for item in files})


def check_digests(folder: Path, *, every: int = 1, first: int = 0) -> None:
    """Raise ValueError naming the first file that is missing or is not what was written.

    Args:
        folder: what `write_digests` was given.
        every: of the files, look at every so many-th.
        first: beginning with this one; several processes share the work so.
    """
    try:
        recorded = json.loads((folder / DIGESTS).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder / DIGESTS} cannot be read ({error}): the checkpoint is incomplete"
        ) from error
    if not isinstance(recorded, dict) or not recorded:
        raise ValueError(f"{folder / DIGESTS} records no digests: the checkpoint is incomplete")
    for name, expected in list(recorded.items())[first::every]:
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: the checkpoint is incomplete")
        if digest(folder / name) != expected:
            raise ValueError(
                f"{folder / name} was changed or damaged: its SHA-256 is not the recorded {expected}"
            )


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors (whole or not at all)."""
    from safetensors.torch import save

    write_file(path, save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}))


def read_tensors(path: Path, *, cast: Callable[[str, Tensor], Tensor] | None = None) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: the file.
        cast: makes of each tensor, given its name, what is kept. One tensor at a time is read, and its
            pages are given back before the next, so that a file in another dtype never is in memory whole.

    Raises:
        ValueError: it is missing or not such a file.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"{path} does not exist: give the folder of a model")
    try:
        if cast is None:
            return load_file(path)
        with safe_open(path, "pt") as file:
            names = list(file.keys())
        tensors = {}
        for name in names:
            with safe_open(path, "pt") as file:
                tensors[name] = cast(name, file.get_tensor(name))
        return tensors
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error})") from error


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Copy tensors into a module; every name and shape must fit.

    Raises:
        ValueError: names the first keys that are missing, left over or of another shape.
    """
    check_fit(module.state_dict(), tensors, source=source)
    module.load_state_dict(dict(tensors), assign=any(value.is_meta for value in module.state_dict().values()))


def check_fit(model: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Compare names and shapes; the values do not matter.

    Raises:
        ValueError: names the first keys that are missing, left over or of another shape.
    """
    expected = {name: tuple(value.shape) for name, value in model.items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    problems = [f"{name} is missing" for name in expected if name not in given]
    problems += [f"{name} is not part of the model" for name in given if name not in expected]
    problems += [
        f"{name} has shape {given[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{source} does not fit the model: {'; '.join(problems[:3])}{more}; "
            "use the settings it was trained with"
        )
