"""Opening what scores are held against: statistics from a file, or images whose statistics are then made."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nextscale.data.sources import open_source
from nextscale.distributed import Distributed
from nextscale.evaluate.images import SourceImages
from nextscale.evaluate.measure import make_reference
from nextscale.evaluate.npz import IMAGES, NpzImages, names_in
from nextscale.evaluate.settings import Features, Kind
from nextscale.evaluate.statistics import (
    Reference,
    check_features,
    is_statistics,
    read_statistics,
    write_reference,
)
from nextscale.features.extractor import Extractor, load_extractor

_CIFAR_SIZE = (32, 32)


def open_images(
    path: str, *, size: tuple[int, int] | None = None, limit: int | None = None
) -> SourceImages | NpzImages:
    """Images of a source, or of an ``.npz`` file.

    Raises:
        ValueError: there are none, or those of a file have another size.
    """
    if Path(path).suffix != ".npz":
        return SourceImages(open_source(path), size=size, limit=limit)
    if limit is not None:
        raise ValueError(f"--limit has no effect on {path}, whose images are all scored: leave it out")
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist")
    images = NpzImages(Path(path))
    if size not in (None, images.image_size):
        raise ValueError(f"{path} holds images of {images.image_size} pixels (height, width), not of {size}")
    return images


@dataclass(frozen=True)
class Opened:
    """A reference before any image of it was looked at."""

    path: str
    kind: Kind
    features: Features
    extractor: Extractor
    ready: Reference | None  #: None: to be made from images
    images: SourceImages | NpzImages | None

    @property
    def description(self) -> dict[str, Any]:
        """What decides which scores come out."""
        about = self.ready.description if self.ready else {"source": self.path, "kind": self.kind}
        return about | {"features_digest": self.extractor.digest}

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Of the images; None: unknown."""
        if self.ready is not None:
            return self.ready.record.class_names
        return self.images.class_names if self.images is not None else None

    def finish(self, ranks: Distributed, *, keep: Path | None) -> Reference:
        """The statistics, made where there are none yet. All processes must call this.

        Args:
            ranks: the processes that share the work.
            keep: file that keeps what was made, and from which it is read if this is called again.
        """
        if self.ready is not None:
            if self.images is None:
                return self.ready
            about = self._make(self.images, ranks)  # the images that lie beside published statistics
            return replace(self.ready, kept_nD=about.kept_nD)
        if keep is not None and ranks.of_first(keep.is_file()):
            with ranks.together():
                reference = read_statistics(keep, kind=self.kind)
                assert self.images is not None
                check_features(
                    reference, features=self.features, digest=self.extractor.digest,
                    image_size=self.images.image_size,
                )  # fmt: skip
            return reference
        assert self.images is not None
        reference = self._make(self.images, ranks)
        with ranks.together():
            if keep is not None and ranks.is_first:
                write_reference(keep, reference)
        return reference

    def _make(self, images: SourceImages | NpzImages, ranks: Distributed) -> Reference:
        return make_reference(
            images, self.extractor, features=self.features, kind=self.kind, name=self.path, ranks=ranks,
            progress="reference",
        )  # fmt: skip


def open_reference(
    options: argparse.Namespace, *, features: Features | None, kind: Kind | None, size: tuple[int, int],
    ranks: Distributed,
) -> Opened:  # fmt: skip
    """What ``--reference`` names, and the network that looks at it.

    Args:
        options: of the command line.
        features: asked for; None: those of the statistics, or what fits the images.
        kind: asked for; None: what the file says.
        size: (H, W) of the images that are scored.
        ranks: whose device is used.

    Raises:
        ValueError: nothing readable, of no kind that is known, or made otherwise.
    """
    path = Path(options.reference)
    ready = None
    if is_statistics(path):
        published = "record" not in names_in(path)
        if not published or features in (None, "inception") or IMAGES not in names_in(path):
            ready = read_statistics(path, kind=kind)
    chosen = features or (ready.record.features if ready else None) or default_features(size)
    extractor = load_extractor(chosen, options.weights, device=ranks.device)
    check_size(extractor, size, chosen)
    if ready is not None:
        check_features(ready, features=chosen, digest=extractor.digest, image_size=size)
        beside = NpzImages(path) if ready.kept_nD is None and IMAGES in names_in(path) else None
        return Opened(options.reference, ready.record.kind, chosen, extractor, ready, beside)
    if kind is None:
        raise ValueError(
            f"{options.reference} does not say whether the model was trained on it: give --reference-kind "
            "training or --reference-kind validation"
        )
    images = open_images(options.reference, size=size)
    return Opened(options.reference, kind, chosen, extractor, None, images)


def default_features(size: tuple[int, int]) -> Features:
    """What looks at images of this size where nothing was said. Raises ValueError."""
    if size != _CIFAR_SIZE:
        raise ValueError(
            f"images of {size[0]} x {size[1]} pixels: give --features inception, dinov2 or classifier, with "
            "--weights"
        )
    return "cifar"


def check_size(extractor: Extractor, size: tuple[int, int], features: Features) -> None:
    """Raise ValueError for a network that does not take such images."""
    side = extractor.image_size
    if side is not None and size != (side, side):
        raise ValueError(
            f"--features {features} looks at images of {side} x {side} pixels, not of {size[0]} x {size[1]}: "
            "give --features inception, dinov2 or a classifier of that size"
        )
