"""Making a token cache: encode, append, write down how far it is; killed, the same call goes on from there.

Letters: B batch, L tokens of all scales.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy
import torch
from tqdm import tqdm

from nextscale import checkpoint
from nextscale.data.loader import Batch, Place, batches_of_places
from nextscale.data.settings import DataSettings
from nextscale.data.sources import Source
from nextscale.data.token_cache import (
    LABELS,
    PROGRESS,
    RECORD,
    TOKENS,
    File,
    MadeFrom,
    Progress,
    Record,
    TokenCache,
    open_cache,
    read_record,
)
from nextscale.tokenizer.model import Tokenizer

#: Samples after which the progress is written down at the latest, which is what a kill can lose.
CHUNK = 1024


def make_cache(
    folder: Path, *, source: Source, tokenizer: Tokenizer, made_from: MadeFrom, batch_size: int,
    num_workers: int, progress: bool,
) -> TokenCache:  # fmt: skip
    """Make a cache, go on making it, or open it where it is finished (which checks all of it).

    Args:
        folder: of the cache; nothing else may be in it.
        source: the images.
        tokenizer: whose tokens are kept; it works where its weights are.
        made_from: of `describe`.
        batch_size: images at a time. It decides nothing but the speed, up to features so near the middle of
            two codes that rounding chooses.
        num_workers: processes that decode images.
        progress: show a bar with the time left.

    Raises:
        ValueError: the folder holds something else or a cache made from something else, or another process
            works in it; an unreadable image.
    """
    if _rows_done(folder, made_from) is None:
        cache = open_cache(folder)
        cache.check()
        return cache
    with checkpoint.held_folder(
        folder, f"another process makes tokens in {folder}: wait for it, stop it, or give another folder"
    ):
        done = _rows_done(folder, made_from)  # somebody else may have been faster
        if done is not None:
            if not done:
                _write_progress(folder, made_from, 0)
            checkpoint.write_file(folder / LABELS, _npy(source.labels))
            settings = DataSettings(enlarge=made_from.enlarge, flip=made_from.flip, num_workers=num_workers)
            batches = batches_of_places(
                source, settings, size=tokenizer.image_size, seed=made_from.seed or 0,
                places=_places(done, made_from, batch_size),
            )  # fmt: skip
            _append(folder, batches, tokenizer, made_from=made_from, done=done, progress=progress)
            _finish(folder, made_from)
        return open_cache(folder)


def _append(
    folder: Path, batches: Iterator[Batch], tokenizer: Tokenizer, *, made_from: MadeFrom, done: int,
    progress: bool,
) -> None:  # fmt: skip
    """Encode batch after batch behind the rows that are done."""
    num_rows = made_from.views * made_from.num_samples
    device, recorded = next(tokenizer.parameters()).device, done
    with (
        _open_rows(folder / TOKENS, made_from, done) as file,
        tqdm(total=num_rows, initial=done, unit="image", desc="tokens", disable=not progress) as bar,
    ):
        for batch in batches:
            images_BCHW = batch.items.to(device, memory_format=torch.channels_last)
            tokens_BL = tokenizer.encode(images_BCHW, precision=made_from.precision).cpu().numpy()
            file.write(tokens_BL.astype(made_from.dtype).tobytes())
            done += len(tokens_BL)
            bar.update(len(tokens_BL))
            if done == num_rows or done + len(tokens_BL) - recorded > CHUNK:
                file.flush()
                os.fsync(file.fileno())
                _write_progress(folder, made_from, done)
                recorded = done


def _rows_done(folder: Path, made_from: MadeFrom) -> int | None:
    """How many rows the folder holds; None where they are all there. Raises ValueError for another folder."""
    if (folder / RECORD).is_file():
        present, done = read_record(folder / RECORD, Record).made_from, None
    elif (folder / PROGRESS).is_file():
        progress = read_record(folder / PROGRESS, Progress)
        present, done = progress.made_from, progress.num_rows
    elif folder.is_file() or (folder.exists() and not all(map(_is_left_over, folder.iterdir()))):
        raise ValueError(f"{folder} exists and is no token cache: give another folder")
    else:
        return 0
    difference = present.difference(made_from)
    if difference:
        raise ValueError(
            f"{folder} holds a token cache with {difference}: give the same settings to go on, "
            "or another folder"
        )
    return done


def _is_left_over(item: Path) -> bool:
    """Whether it is the lock, or what a kill in the middle of the very first record left."""
    return item.name == checkpoint.LOCK or item.name.startswith(f".{PROGRESS}.")


def _finish(folder: Path, made_from: MadeFrom) -> None:
    files = {
        name: File(num_bytes=(folder / name).stat().st_size, sha256=checkpoint.digest(folder / name))
        for name in (TOKENS, LABELS)
    }
    checkpoint.write_json(folder / RECORD, Record(made_from=made_from, files=files).model_dump(mode="json"))
    (folder / PROGRESS).unlink()


def _places(done: int, made_from: MadeFrom, batch_size: int) -> Iterator[list[Place]]:
    """The rows that are missing; row r of the tokens' file is view r // N of sample r % N."""
    num_rows, num_samples = made_from.views * made_from.num_samples, made_from.num_samples
    for start in range(done, num_rows, batch_size):
        yield [Place(*divmod(row, num_samples)) for row in range(start, min(start + batch_size, num_rows))]


def _open_rows(path: Path, made_from: MadeFrom, done: int) -> BinaryIO:
    """The tokens' file, ready for the row after ``done``; what was written after that is dropped."""
    head = io.BytesIO()
    description = {"descr": made_from.dtype.str, "fortran_order": False, "shape": made_from.shape}
    numpy.lib.format.write_array_header_1_0(head, description)
    start = len(head.getvalue()) + done * made_from.schedule.num_tokens * made_from.dtype.itemsize
    if done and (not path.is_file() or path.stat().st_size < start):
        raise ValueError(
            f"{path} holds less than {PROGRESS} says: remove {path.parent} and run the command again"
        )
    file = path.open("r+b" if done else "wb")
    file.write(head.getvalue())
    file.truncate(start)
    file.seek(start)
    return file


def _npy(array: numpy.ndarray) -> bytes:
    buffer = io.BytesIO()
    numpy.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _write_progress(folder: Path, made_from: MadeFrom, num_rows: int) -> None:
    progress = Progress(made_from=made_from, num_rows=num_rows)
    checkpoint.write_json(folder / PROGRESS, progress.model_dump(mode="json"))
