"""Images drawn into many files: Parquet, or tars as WebDataset reads them; by one process or several.

Special here: a shard is drawn from its own first image on, batch by batch, so its bytes do not depend on who
draws it or on what was drawn before; it is written whole, then its SHA-256 beside it, as `sha256sum -c` reads
it. A shard with the right one is done; any other is drawn again.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from nextscale import checkpoint
from nextscale.distributed import Distributed
from nextscale.generate.generator import Generator
from nextscale.generate.provenance import png_bytes
from nextscale.generate.reproduce import in_batches, records
from nextscale.generate.request import Label, resolve_label

Format = Literal["parquet", "webdataset"]
_ENDINGS: dict[Format, str] = {"parquet": ".parquet", "webdataset": ".tar"}


@dataclass(frozen=True)
class ShardPlan:
    """What is drawn, and into which files."""

    labels: Sequence[Label]  #: one per image
    seeds: Sequence[int]  #: likewise
    sampling: Mapping[str, Any]  #: settings that were given
    smooth: bool
    batch: int  #: images at a time
    shard_size: int  #: images per file; the last one may have fewer
    format: Format
    model_digest: str

    @property
    def starts(self) -> range:
        """The number of each shard's first image."""
        return range(0, len(self.labels), self.shard_size)

    def file(self, folder: Path, start: int) -> Path:
        """Where the shard that begins with an image lies."""
        return folder / f"shard-{start // self.shard_size:05d}{_ENDINGS[self.format]}"


class _Row(NamedTuple):
    """One image in a shard."""

    key: str
    png: bytes
    label: int
    class_name: str
    seed: int


def write_shards(
    generator: Generator, plan: ShardPlan, folder: Path, *, ranks: Distributed, stop: Callable[[], bool]
) -> tuple[int, bool]:
    """Draw every shard that is not there yet.

    Args:
        generator: the same on all processes.
        plan: likewise.
        folder: of the shards; exists.
        ranks: the processes that share the work, each of which draws every n-th shard.
        stop: asked between batches; the shard at hand is then dropped.

    Returns:
        How many shards are whole, and whether that is all of them, told to every process.

    Raises:
        ValueError: settings that do not fit the model, or pyarrow is missing; on several processes as
            SharedError.
    """
    mine = plan.starts[ranks.rank :: ranks.world_size]
    done = 0
    with ranks.together():
        names = [*generator.class_names, *(["none"] if None in plan.labels else [])]
        pack = _packer(plan.format, names)
        total = sum(min(plan.shard_size, len(plan.labels) - start) for start in mine)
        # the first process speaks, of its own images: the others have about as many
        with tqdm(total=total, unit="image", disable=None if ranks.is_first else True) as bar:
            for start in mine:
                if _is_whole(plan.file(folder, start)):
                    bar.update(min(plan.shard_size, len(plan.labels) - start))
                else:
                    rows = _draw(generator, plan, start, stop=stop, bar=bar)
                    if rows is None:
                        break
                    _write(plan.file(folder, start), pack(rows))
                done += 1
    finished = not ranks.agree(done < len(mine))
    return sum(int(text) for text in ranks.gather(str(done))), finished


def _is_whole(file: Path) -> bool:
    """Whether a shard is there and is what was written."""
    note = _note(file)
    if not (file.is_file() and note.is_file()):
        return False
    return note.read_text().partition(" ")[0] == checkpoint.digest(file)


def _write(file: Path, content: bytes) -> None:
    checkpoint.write_file(file, content)
    checkpoint.write_file(_note(file), f"{checkpoint.digest(file)}  {file.name}\n")


def _note(file: Path) -> Path:
    return file.with_name(file.name + ".sha256")


def _draw(
    generator: Generator, plan: ShardPlan, start: int, *, stop: Callable[[], bool], bar: tqdm  # type: ignore[type-arg]
) -> list[_Row] | None:  # fmt: skip
    """The rows of one shard; None where it was asked to stop."""
    rows: list[_Row] = []
    end = min(start + plan.shard_size, len(plan.labels))
    for first in range(start, end, plan.batch):
        if stop():
            return None
        part = slice(first, min(first + plan.batch, end))
        labels, seeds = plan.labels[part], plan.seeds[part]
        images = generator(labels, seeds=seeds, smooth=plan.smooth, **plan.sampling).images
        carried = records(
            generator, labels, seeds, places=in_batches(len(images), len(images)),
            model_digest=plan.model_digest, sampling=dict(plan.sampling), smooth=plan.smooth,
        )  # fmt: skip
        for index, (image, record) in enumerate(zip(images, carried, strict=True), start=first):
            number = resolve_label(record.label, generator.class_names)
            name = record.class_name if record.label is not None else "none"
            rows.append(_Row(f"{index:09d}", png_bytes(image, record), number, name, record.seed))
        bar.update(len(images))
    return rows


def _packer(kind: Format, class_names: Sequence[str]) -> Callable[[list[_Row]], bytes]:
    """What makes a file of rows. Raises ValueError when pyarrow is missing."""
    if kind == "webdataset":
        return _tar
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "--format parquet needs pyarrow: pip install 'nextscale[train]', or give --format webdataset"
        ) from error
    return lambda rows: _parquet(rows, class_names)


def _tar(rows: list[_Row]) -> bytes:
    """Of each image ``.png``, ``.cls`` (its class's number) and ``.json``; without times and owners."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            for ending, content in _members(row):
                member = tarfile.TarInfo(f"{row.key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _members(row: _Row) -> Iterator[tuple[str, bytes]]:
    yield "png", row.png
    yield "cls", str(row.label).encode()
    about = {"label": row.label, "class_name": row.class_name, "seed": row.seed}
    yield "json", json.dumps(about).encode()


def _parquet(rows: list[_Row], names: Sequence[str]) -> bytes:
    """Columns ``image`` (bytes, path), ``label``, ``class_name``, ``seed``, named for Hugging Face."""
    import pyarrow
    import pyarrow.parquet

    features = {
        "image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"},
        "class_name": {"dtype": "string", "_type": "Value"}, "seed": {"dtype": "int64", "_type": "Value"},
    }  # fmt: skip
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    kinds = {
        "image": image, "label": pyarrow.int64(), "class_name": pyarrow.string(), "seed": pyarrow.int64(),
    }  # fmt: skip
    columns = {
        "image": [{"bytes": row.png, "path": f"{row.key}.png"} for row in rows],
        "label": [row.label for row in rows], "class_name": [row.class_name for row in rows],
        "seed": [row.seed for row in rows],
    }  # fmt: skip
    schema = pyarrow.schema(
        list(kinds.items()), metadata={"huggingface": json.dumps({"info": {"features": features}})}
    )
    buffer = io.BytesIO()
    table = pyarrow.table(columns, schema=schema)
    pyarrow.parquet.write_table(table, buffer, compression="none")  # PNG files are compressed
    return buffer.getvalue()
