"""A folder of images: ``root/class name/any.jpg``, or images alone, which are one class."""

from __future__ import annotations

import os
from pathlib import Path

from nextscale.data.sources.base import (
    EXTENSIONS,
    classes_of_folders,
    is_hidden,
    number_classes,
    printable,
)


class FolderSource:
    """``root/class name/any.jpg``; a root that holds images and no class folders is one class.

    Hidden files and folders do not count.

    Raises:
        ValueError: no image there, or images beside class folders.
    """

    def __init__(self, root: Path) -> None:
        found = images_below(root)
        classes = classes_of_folders([parts for parts, _ in found], str(root), root.resolve().name)
        self.files = [file for _, file in found]
        self.class_names, self.labels = number_classes(classes, str(root))

    def read(self, index: int) -> bytes:
        return self.files[index].read_bytes()

    def name(self, index: int) -> str:
        return printable(str(self.files[index]))


def images_below(root: Path) -> list[tuple[tuple[str, ...], Path]]:
    """Every image below a folder with the parts of its path from there, in the order of the parts.

    Links are followed, except to a folder that they lie in.
    """
    found = []
    for place, folders, files in os.walk(root, followlinks=True):
        parts = Path(place).relative_to(root).parts
        folders[:] = [name for name in folders if not is_hidden([name]) and not _is_loop(place, name)]
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not is_hidden([name]):
                file = Path(place, name)
                if file.is_file():
                    found.append(((*parts, name), file))
    return sorted(found)


def _is_loop(place: str, name: str) -> bool:
    folder = os.path.join(place, name)
    return os.path.islink(folder) and Path(place).resolve().is_relative_to(Path(folder).resolve())
