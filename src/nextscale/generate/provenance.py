"""What a picture is made of, written into its PNG file, and read again. No torch here.

Letters: H W pixels.
Special here: the same picture with the same record gives the same bytes. What a file says about itself comes
from strangers: its record is small, has known fields alone, and is checked before anything is done with it.
It proves nothing; `nextscale reproduce` does.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import IO, Literal

import numpy
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nextscale import __version__, checkpoint
from nextscale.generate.settings import EditSettings, SamplingSettings, Task

#: The keyword of the text in the PNG file.
KEYWORD = "nextscale"
_MOST_CHARACTERS = 8192
_MOST_BYTES = 2**28
_DIGEST = r"^[0-9a-f]{64}$"


class EditRecord(BaseModel):
    """What an edit was given besides what a sample is."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    task: Task
    settings: EditSettings = Field(
        EditSettings(), description="those that were given; the rest is the task's own"
    )
    image_digest: str = Field(
        pattern=_DIGEST, description="`pixels_digest` of the given image, as it was used"
    )
    mask_digest: str | None = Field(None, pattern=_DIGEST, description="of the mask, as it was used")
    box: tuple[float, float, float, float] | None = Field(
        None, description="instead of a mask: y0, x0, y1, x1"
    )


class Record(BaseModel):
    """All that the pixels of one picture depend on."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: Literal[1] = 1
    nextscale: str = Field(max_length=50, description="version")
    torch: str = Field(max_length=50, description="version")
    device: str = Field(max_length=20, description="kind: cpu, cuda, ...")
    dtype: Literal["float32", "bfloat16"]
    laid_out: bool = Field(False, description="for generating, in float32; bfloat16 always is")
    model_digest: str = Field(pattern=_DIGEST, description="`nextscale.generate.folder.model_digest`")
    label: int | None = Field(ge=0, description="number of the class")
    class_name: str = Field("", max_length=500, description="its name, for readers")
    seed: int = Field(ge=0, lt=2**63)
    batch: int = Field(
        1, ge=1, le=65536, description="images that were made together: sums round by their shape"
    )
    row: int = Field(0, ge=0, description="which of them it was")
    smooth: bool = False
    sampling: SamplingSettings = Field(description="all that decide")
    edit: EditRecord | None = None

    @model_validator(mode="after")
    def _check_row(self) -> Record:
        if self.row >= self.batch:
            raise ValueError(f"row {self.row} of a batch of {self.batch} is none")
        return self

    def as_text(self) -> str:
        """JSON of what is set, in one line, in the order of the fields."""
        return self.model_dump_json(exclude_unset=True)


def new_record(
    *,
    torch_version: str,
    device: str,
    dtype: str,
    model_digest: str,
    sampling: dict[str, object],
    **more: object,
) -> Record:
    """A record of this version of the package.

    Args:
        torch_version: as torch says it.
        device: its kind.
        dtype: of the weights.
        model_digest: of the model's folder.
        sampling: what `Generator.sampling` gives: every setting that decides, one value each.
        more: label, seed and what else is known.
    """
    return Record.model_validate(
        {
            "format_version": 1, "nextscale": __version__, "torch": torch_version, "device": device,
            "dtype": dtype.removeprefix("torch."), "model_digest": model_digest,
            "sampling": SamplingSettings.model_validate(sampling), **more,
        }
    )  # fmt: skip


def pixels_digest(pixels: numpy.ndarray) -> str:
    """SHA-256 of an array's type, shape and values, in hexadecimal."""
    head = f"{pixels.dtype.str} {pixels.shape} "
    return hashlib.sha256(head.encode() + numpy.ascontiguousarray(pixels).tobytes()).hexdigest()


def png_bytes(image: numpy.ndarray, record: Record) -> bytes:
    """A PNG file of uint8 (H, W, 3) that carries its record."""
    text = PngInfo()
    text.add_itxt(KEYWORD, record.as_text())
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def write_png(path: Path, image: numpy.ndarray, record: Record) -> None:
    """Write a PNG file whole or not at all; see `png_bytes`."""
    checkpoint.write_file(path, png_bytes(image, record))


def read_png(source: Path | IO[bytes], *, name: str = "") -> tuple[numpy.ndarray, Record]:
    """The pixels uint8 (H, W, 3) of a PNG file, and its record.

    Args:
        source: the file.
        name: what to call it in a message; the path, where there is one.

    Raises:
        ValueError: no PNG file, without a record, or with one that is not understood.
    """
    name = name or str(source)
    if isinstance(source, Path) and source.is_file() and source.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{name} has more than {_MOST_BYTES} bytes: expected a picture by nextscale")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=["PNG"]) as image:
                text = image.info.get(KEYWORD)
                pixels = numpy.asarray(image.convert("RGB")) if text else None
    except Exception as error:  # Pillow raises struct.error, TypeError, SyntaxError ... for damaged files
        raise ValueError(f"{name} is not a readable PNG file ({error})") from error
    if pixels is None or not isinstance(text, str):
        raise ValueError(f"{name} carries no record of nextscale: it was written otherwise, or changed since")
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(
            f"{name}: its record has {len(text)} characters, expected at most {_MOST_CHARACTERS}"
        )
    try:
        return pixels, Record.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise ValueError(f"{name}: its record is not understood: {where}: {first['msg']}") from error
