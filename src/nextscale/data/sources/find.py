"""From what a user typed to a source: a path, a pattern of paths, or a name on the Hugging Face hub."""

from __future__ import annotations

import glob
import itertools
import re
from pathlib import Path

from nextscale.data.sources.archive import ArchiveSource, index_archive
from nextscale.data.sources.base import Source
from nextscale.data.sources.folder import FolderSource, images_below
from nextscale.data.sources.hugging_face import HUB, is_saved_dataset, open_hub, open_saved
from nextscale.data.sources.parquet import ParquetSource
from nextscale.data.sources.shards import open_tars

#: Files that hold many images.
SUFFIXES = (".parquet", ".tar", ".zip")
EXPECTED = "a folder of images, .zip, .tar or .parquet files (also {000..012} or *), or hf:owner/name"

_SPLIT = re.compile(r"(?:^|[^a-z])(train|test|valid|val|dev)(?:idation|ing)?(?:$|[^a-z])")


def open_source(path: str | Path) -> Source:
    """The images at a path.

    Args:
        path: a folder of images, or one that `datasets` saved; a .zip, .tar or .parquet file, a folder of
            such files, or a pattern of them (``shards-{000..012}.tar``, ``part-*.parquet``); or
            ``hf:owner/name[@revision][:split]``.

    Raises:
        ValueError: nothing readable is there.
    """
    text = str(path)
    if not text:
        raise ValueError(f"no data source given: expected {EXPECTED}; set --data.source")
    if text.startswith(HUB):
        return open_hub(text)
    files = _paths(text)
    if len(files) > 1 or not files[0].is_dir():
        return _open_files(files, files[0].stem if len(files) == 1 else files[0].resolve().parent.name)
    folder = files[0]
    if is_saved_dataset(folder):
        return open_saved(folder)
    files = sorted(item for item in folder.iterdir() if item.suffix.lower() in SUFFIXES and item.is_file())
    if not files or images_below(folder):
        return FolderSource(folder)
    splits = {found[1] for file in files if (found := _SPLIT.search(file.stem.lower()))}
    if len(splits) > 1:
        raise ValueError(
            f"{folder} holds files of several splits ({', '.join(sorted(splits))}): give a pattern of one, "
            f"such as '{folder}/*{min(splits)}*{files[0].suffix}'"
        )
    return _open_files(files, folder.resolve().name)


def _open_files(files: list[Path], fallback: str) -> Source:
    where = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) > 1:
        raise ValueError(f"{where} are of several kinds ({', '.join(kinds)}): expected one")
    if kinds == [".parquet"]:
        return ParquetSource(files, fallback)
    if kinds == [".tar"]:
        return open_tars(files, where, fallback)
    if kinds == [".zip"]:
        return ArchiveSource([member for file in files for member in index_archive(file)], where, fallback)
    if kinds[0] in (".tgz", ".gz", ".bz2", ".xz", ".zst"):
        raise ValueError(
            f"{files[0]} is compressed: unpack it to a .tar, whose images can be read in any order"
        )
    raise ValueError(f"{files[0]} is no data source: expected {EXPECTED}")


def _paths(text: str) -> list[Path]:
    """What a path or a pattern stands for, in order."""
    whole = Path(text).expanduser()
    if whole.exists():
        return [whole]
    found: list[Path] = []
    words = _braces(str(whole))
    for word in words:
        if glob.has_magic(word):
            matches = sorted(glob.glob(word))
            if not matches:
                raise ValueError(f"no file fits {word}")
            found += [Path(match) for match in matches]
        else:
            found.append(Path(word))
    missing = [file for file in found if not file.exists()]
    if missing:
        among = f" ({len(missing)} of {len(found)} that {text} stands for)" if len(found) > 1 else ""
        raise ValueError(f"{missing[0]} does not exist{among}: expected {EXPECTED}")
    return found


def _braces(text: str) -> list[str]:
    """``a-{08..10}{x,y}`` -> a-08x, a-08y, a-09x, ..."""
    pieces = re.split(r"\{([^{}]*)\}", text)
    choices = [_choices(piece) if number % 2 else [piece] for number, piece in enumerate(pieces)]
    return ["".join(words) for words in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    found = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if not found:
        return inside.split(",")
    first, last = found.groups()
    if int(last) < int(first) or int(last) - int(first) > 100_000:
        raise ValueError(f"{{{inside}}} counts no files: expected {{first..last}}, such as {{000..012}}")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
