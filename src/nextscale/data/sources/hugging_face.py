"""Data sets of Hugging Face: a folder that `save_to_disk` wrote, or a name on the hub.

Special here: `datasets` is imported when such a source is opened and not before; images are read undecoded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy

from nextscale.data.sources.base import BadImageError, number_classes

HUB = "hf:"
_EXPECTED = "hf:owner/name, hf:owner/name:split or hf:owner/name@revision"


class HuggingFaceSource:
    """A `datasets.Dataset` with one column of images, and labels where it has them.

    Args:
        dataset: with random access.
        where: what to call it in a message.

    Raises:
        ValueError: no column of images, several, or labels that do not fit.
    """

    def __init__(self, dataset: Any, where: str) -> None:
        import datasets

        if not len(dataset):
            raise ValueError(f"{where} holds no images")
        features = dataset.features
        image = _one(features, datasets.Image, ("image", "img"), where, "images")
        if image is None:
            raise ValueError(f"{where} has the columns {list(features)}: expected one of images")
        self.where, self.column = where, image
        self.class_names: tuple[str, ...]
        self.images = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        column = _one(features, datasets.ClassLabel, ("label", "cls"), where, "labels")
        if column is None:
            column = next((name for name in ("label", "cls") if name in features), None)
        if column is None:
            self.class_names = (Path(where.removeprefix(HUB)).name,)
            self.labels = numpy.zeros(len(dataset), dtype=numpy.int64)
            return
        values = dataset.select_columns([column]).with_format("arrow")[:][column].to_pylist()
        names = tuple(getattr(features[column], "names", None) or ())
        kinds = {type(value) for value in values}
        if kinds not in ({int}, {str}):
            raise ValueError(f"{where}: column {column} must hold whole numbers or class names and no gaps")
        labels = numpy.array(values) if kinds == {int} else values
        self.class_names, self.labels = number_classes(labels, f"{where}: column {column}", names)

    def read(self, index: int) -> bytes:
        row = self.images[int(index)][self.column] or {}
        if row.get("bytes") is not None:
            return bytes(row["bytes"])
        if row.get("path"):
            return Path(row["path"]).read_bytes()
        raise BadImageError(self.name(index), "the row holds no image")

    def name(self, index: int) -> str:
        return f"{self.where} row {index}"


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def open_saved(folder: Path) -> HuggingFaceSource:
    """A data set that `save_to_disk` wrote. Raises ValueError when it has splits or cannot be read."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(item.name for item in folder.iterdir() if is_saved_dataset(item))
        raise ValueError(
            f"{folder} holds the splits {', '.join(splits)}: give one of them, {folder}/{splits[0]}"
        )
    datasets = _import_datasets(str(folder))
    try:
        return HuggingFaceSource(datasets.load_from_disk(str(folder)), str(folder))
    except (OSError, TypeError, KeyError) as error:
        raise ValueError(f"{folder} cannot be read as a data set ({error})") from error


def open_hub(text: str) -> HuggingFaceSource:
    """``hf:owner/name[@revision][:split]``, downloaded into the cache of `datasets`.

    Without a split it is ``train``, or the only one.

    Raises:
        ValueError: no such data set, or no such split.
    """
    found = re.fullmatch(r"hf:([\w.-]+(?:/[\w.-]+)?)(?:@([^:\s]+))?(?::([\w.-]+))?", text)
    if not found:
        raise ValueError(f"{text} names no data set: expected {_EXPECTED}")
    name, revision, split = found.groups()
    datasets = _import_datasets(text)
    try:
        splits = datasets.load_dataset(name, revision=revision)
    except Exception as error:  # the library raises its own kinds, and those of several network libraries
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{text} cannot be loaded ({line}): expected {_EXPECTED}") from error
    if split is None:
        split = "train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else None
    if split not in splits:
        raise ValueError(f"{text}: give one of its splits {', '.join(splits)}, as in {HUB}{name}:split")
    return HuggingFaceSource(splits[split], text)


def _one(features: Any, kind: type, preferred: tuple[str, ...], where: str, what: str) -> str | None:
    """The column of a kind; of several, the one with a usual name."""
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    usual = [name for name in preferred if name in found]
    if len(found) > 1 and len(usual) != 1:
        raise ValueError(
            f"{where} has several columns of {what} ({', '.join(found)}): name one of them {preferred[0]}"
        )
    return (usual or found or [None])[0]


def _import_datasets(where: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"reading {where} needs datasets: pip install 'nextscale[datasets]'") from error
    return datasets
