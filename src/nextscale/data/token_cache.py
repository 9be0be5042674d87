"""Tokens of some views of every image, made once, read from disk by every training that they fit.

Letters: V views, N all samples, L tokens of all scales.
Special here: view v of sample i is the crop that training on the fly takes of it in epoch v, so a training
that reads the cache sees the same tokens for its first V epochs. A cache is a folder: ``tokens.npy`` (V, N,
L), ``labels.npy`` (N,), and ``cache.json``, which is written last: what it was made from, size and digest of
both. While it is made, ``making.json`` stands there instead and says how much is done.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy
from pydantic import BaseModel, ConfigDict, ValidationError

from nextscale import checkpoint
from nextscale.data.settings import DataSettings
from nextscale.data.sources import Source
from nextscale.rng import check_seeds
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.model import Tokenizer
from nextscale.tokenizer.settings import Precision

Kind = TypeVar("Kind", bound=BaseModel)

TOKENS, LABELS, RECORD, PROGRESS = "tokens.npy", "labels.npy", "cache.json", "making.json"


class MadeFrom(BaseModel):
    """Everything that decides what a cache holds, except the contents of the image files."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: str  #: as it was given
    held_out: float | None  #: share of each class that was left out for validation
    num_samples: int
    labels_sha256: str
    class_names: tuple[str, ...]
    tokenizer_sha256: str  #: of its file of weights
    schedule: ScaleSchedule
    vocab_size: int
    views: int
    enlarge: float
    flip: bool
    seed: int | None  #: None where nothing is drawn: the center crop, never mirrored
    precision: Precision = "float32"  #: of the encoder; the quantiser is always in float32

    @property
    def shape(self) -> tuple[int, int, int]:
        """(V, N, L) of the tokens."""
        return self.views, self.num_samples, self.schedule.num_tokens

    @property
    def dtype(self) -> numpy.dtype[Any]:
        """Two bytes a token where the vocabulary allows it, else four."""
        return numpy.dtype("<u2" if self.vocab_size <= 2**16 else "<i4")

    def difference(self, wanted: MadeFrom) -> str | None:
        """The first thing that is not as wanted, in words."""
        for name in MadeFrom.model_fields:
            if getattr(self, name) != getattr(wanted, name):
                given, other = (_in_words(settings, name) for settings in (self, wanted))
                return f"{name} = {given}, not {other}"
        return None


class File(BaseModel):
    """How to recognise a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    num_bytes: int
    sha256: str


class Record(BaseModel):
    """What ``cache.json`` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: Literal[1] = 1
    made_from: MadeFrom
    files: dict[str, File]


class Progress(BaseModel):
    """What ``making.json`` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: Literal[1] = 1
    made_from: MadeFrom
    num_rows: int


@dataclass(frozen=True)
class TokenCache:
    """A finished cache, opened. It has labels and class names as a `Source` has, but no images."""

    folder: Path
    made_from: MadeFrom
    tokens_VNL: numpy.ndarray  #: uint16 or int32, a memory map
    labels: numpy.ndarray  #: int64 (N,)
    sha256: str  #: of the tokens' file, as it was recorded

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.made_from.class_names

    def check(self) -> None:
        """Read all of it. Raises ValueError when a file is not what was written."""
        for name, file in read_record(self.folder / RECORD, Record).files.items():
            if checkpoint.digest(self.folder / name) != file.sha256:
                raise ValueError(
                    f"{self.folder / name} was changed or damaged: its SHA-256 is not the recorded "
                    f"{file.sha256}; remove {self.folder} and tokenize again"
                )


def describe(
    source: Source, data: DataSettings, *, held_out: float | None, tokenizer: Tokenizer,
    tokenizer_sha256: str, views: int, seed: int, precision: Precision = "float32",
) -> MadeFrom:  # fmt: skip
    """What a cache of this source would be made from.

    Args:
        source: the images to train on.
        data: where they are, and how they are cropped and mirrored.
        held_out: the share of each class that is missing there.
        tokenizer: any of that architecture.
        tokenizer_sha256: the digest of its file of weights.
        views: crops of every image.
        seed: of the training's random choices.
        precision: of the encoder.

    Raises:
        ValueError: no view, several views that would be the same, or a seed that is none.
    """
    check_seeds([seed])
    drawn = data.flip or data.enlarge > 1
    if views < 1:
        raise ValueError(f"views {views} must be at least 1")
    if views > 1 and not drawn:
        raise ValueError(
            f"{views} views without flip and with enlarge 1 would be the same center crop: "
            "keep 1 view, or flip, or enlarge"
        )
    return MadeFrom(
        source=data.source, held_out=held_out,
        num_samples=len(source.labels), labels_sha256=labels_digest(source.labels),
        class_names=source.class_names, tokenizer_sha256=tokenizer_sha256, schedule=tokenizer.schedule,
        vocab_size=tokenizer.settings.quantizer.vocab_size, views=views, enlarge=data.enlarge, flip=data.flip,
        seed=seed if drawn else None, precision=precision,
    )  # fmt: skip


def labels_digest(labels: numpy.ndarray) -> str:
    """SHA-256 of labels int64 (N,), the same on every machine."""
    return hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()


def open_cache(folder: Path) -> TokenCache:
    """A finished cache. Looks at the sizes of its files, not at their contents (see `TokenCache.check`).

    Raises:
        ValueError: there is none, it is not finished, or a file is missing or of another size, shape or type.
    """
    if not (folder / RECORD).is_file():
        if (folder / PROGRESS).is_file():
            raise ValueError(f"{folder} holds an unfinished token cache: run the command that makes it again")
        raise ValueError(f"{folder} holds no token cache: make one with nextscale tokenize")
    record = read_record(folder / RECORD, Record)
    made_from = record.made_from
    arrays = {}
    for name, shape, dtype in (
        (TOKENS, made_from.shape, made_from.dtype), (LABELS, (made_from.num_samples,), numpy.int64)
    ):  # fmt: skip
        path = folder / name
        num_bytes = path.stat().st_size if path.is_file() else None
        if name not in record.files or num_bytes != record.files[name].num_bytes:
            raise ValueError(f"{path} is missing or was cut: remove {folder} and tokenize again")
        try:
            arrays[name] = numpy.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{path} is no array: remove {folder} and tokenize again") from error
        if arrays[name].shape != shape or arrays[name].dtype != dtype:
            raise ValueError(
                f"{path} holds {arrays[name].dtype} {arrays[name].shape}, not {numpy.dtype(dtype)} {shape} "
                f"as {RECORD} says: remove {folder} and tokenize again"
            )
    return TokenCache(
        folder, made_from, arrays[TOKENS], numpy.array(arrays[LABELS]), record.files[TOKENS].sha256
    )


def _in_words(made_from: MadeFrom, name: str) -> str:
    text = json.dumps(made_from.model_dump(mode="json")[name], ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:100]}..."


def read_record(path: Path, kind: type[Kind]) -> Kind:
    """One of the two, checked. Raises ValueError when it is something else."""
    try:
        return kind.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ValueError(
            f"{path} is not the record of a token cache ({error.errors()[0]['msg']}): give another folder"
        ) from error
