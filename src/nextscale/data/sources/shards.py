"""Tar files: WebDataset shards, whose labels lie beside the images, and tars of a folder.

Special here: the headers are read once, then every image by its offset, so that shuffling and exact
resumption need no streaming. The order is that of the shards; of a tar of a folder, that of the folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy

from nextscale.data.sources.archive import (
    ArchiveSource,
    Member,
    index_archive,
    is_image,
    member_name,
    read_member,
)
from nextscale.data.sources.base import EXTENSIONS, Source, number_classes

Key = tuple[Path, tuple[str, ...], str]


class ShardSource:
    """Images of WebDataset shards with the labels that lie beside them.

    Raises:
        ValueError: a sample without a label, or with several images; labels of two kinds.
    """

    def __init__(self, images: Sequence[Member], labels: dict[Key, str], where: str) -> None:
        samples: dict[Key, list[Member]] = {}
        for image in images:
            samples.setdefault(_key(image), []).append(image)
        self.members = [_only_image(found) for found in samples.values()]
        values = []
        for key, member in zip(samples, self.members, strict=True):
            if key not in labels:
                raise ValueError(f"{member_name(member)} has no label beside it, though others have one")
            values.append(labels[key])
        numbers = [value.isascii() and value.isdigit() for value in values]
        if any(numbers) and not all(numbers):
            number, name = values[numbers.index(True)], values[numbers.index(False)]
            raise ValueError(f"{where} holds class numbers ({number}) and names ({name}): expected one kind")
        self.class_names, self.labels = number_classes(
            numpy.array([int(value) for value in values]) if all(numbers) else values, where
        )

    def read(self, index: int) -> bytes:
        return read_member(self.members[index])

    def name(self, index: int) -> str:
        return member_name(self.members[index])


def open_tars(files: Sequence[Path], where: str, fallback: str) -> Source:
    """What lies in tar files: samples with labels beside them, or folders of images as in a zip.

    A sample's label is its ``.cls`` (a number or a class name) or the ``label`` or ``cls`` of its ``.json``.

    Args:
        files: in order.
        where: what to call all of them in a message.
        fallback: name of the class of images without labels and folders.

    Raises:
        ValueError: a shard is cut short, or its labels do not fit its images.
    """
    members = [member for file in files for member in index_archive(file)]
    images = [member for member in members if is_image(member.path[-1])]
    keys = {_key(member) for member in images}
    labels: dict[Key, str] = {}
    for ending in (".json", ".cls"):  # the latter counts where there are both
        for member in members:
            if _ending(member) == ending and _key(member) in keys:
                value = _label(member)
                if value is not None:
                    labels[_key(member)] = value
    if not labels:
        return ArchiveSource(images, where, fallback)
    return ShardSource(images, labels, where)


def _key(member: Member) -> Key:
    """WebDataset's key: the path up to the first dot of the file's name."""
    return member.archive, member.path[:-1], member.path[-1].split(".", 1)[0]


def _ending(member: Member) -> str:
    """What follows the key, in small letters: ``.cls``, ``.seg.png``."""
    return "." + member.path[-1].partition(".")[2].lower()


def _only_image(found: Sequence[Member]) -> Member:
    """The image of a sample: ``a.jpg`` before ``a.mask.png``."""
    plain = [member for member in found if _ending(member) in EXTENSIONS] or list(found)
    if len(plain) > 1:
        raise ValueError(
            f"{member_name(plain[0])} and {plain[1].path[-1]} are one sample: expected one image"
        )
    return plain[0]


def _label(member: Member) -> str | None:
    """What a file beside an image says about its class, or nothing."""
    content = read_member(member)
    try:
        if _ending(member) == ".cls":
            value: object = content.decode().strip()
        else:
            record = json.loads(content)
            value = record.get("label", record.get("cls")) if isinstance(record, dict) else None
    except ValueError as error:
        raise ValueError(f"{member_name(member)} cannot be read ({error})") from error
    if value is None:
        return None
    text = str(value)
    number = text.lstrip("-").isdigit()
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not text:
        raise ValueError(
            f"{member_name(member)} gives the label {value!r}: expected a number or a class name"
        )
    if number and (text.startswith("-") or len(text) > 9):
        raise ValueError(
            f"{member_name(member)} gives the label {text}: expected a number that counts from 0"
        )
    return text
