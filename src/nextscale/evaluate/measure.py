"""What networks see in images, image by image: in parts that survive a kill, on one process or several.

Letters: N images, B batch, D features.
Special here: everything is kept per image and in the order of the images, and only then made a score. Hence
neither batches nor the number of processes change a score beyond rounding, and what is done is done.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from tqdm import tqdm

from nextscale import checkpoint
from nextscale.data.loader import chosen_indices
from nextscale.distributed import Distributed
from nextscale.evaluate.images import Images, SourceImages
from nextscale.evaluate.moments import Moments
from nextscale.evaluate.npz import NpzImages
from nextscale.evaluate.settings import Features, Kind, ReferenceRecord
from nextscale.evaluate.statistics import NUM_KEPT, Reference, versions
from nextscale.features.classifier import Classifier
from nextscale.features.extractor import Extractor
from nextscale.pixels import to_model

#: What is known of each image, by name: arrays whose first axis is the images.
Rows = dict[str, numpy.ndarray]

_PART = 256  # images that are kept or lost together
_BATCH = 128  # images of a reference at a time
_KEPT_OUTPUTS = ("pool", "spatial", "logits_unbiased", "logits")


class Looker:
    """Takes a batch of images to what scores need of each."""

    def __init__(
        self, images: Images, extractor: Extractor, *, classifier: Classifier | None = None, num_shown: int
    ) -> None:
        self.images, self.extractor, self.classifier = images, extractor, classifier
        self.num_shown = min(num_shown, images.count)

    @torch.no_grad()
    def __call__(self, indices: range) -> Rows:
        """The rows of some images in a row; the pixels of the first ones, which are shown, are among them."""
        pixels, rows = self.images.read(indices)
        original = rows.pop("original", None)
        seen = self.extractor(pixels)
        rows |= {name: seen[name].cpu().numpy() for name in _KEPT_OUTPUTS if name in seen}
        if self.classifier is not None and self.images.labels is not None:
            device = next(self.classifier.parameters()).device
            guesses = self.classifier.assign(to_model(pixels).to(device)).cpu().numpy()
            rows["agreed"] = (guesses == self.images.labels[indices.start : indices.stop]).astype(numpy.uint8)
        shown = max(0, min(self.num_shown - indices.start, len(indices)))
        pictures = pixels if original is None else numpy.concatenate([original, pixels], axis=2)
        return rows | {"shown": pictures[:shown]}


def measure(
    look: Callable[[range], Rows], count: int, *, batch: int, ranks: Distributed, parts: Path | None,
    progress: str | None,
) -> Rows:  # fmt: skip
    """The rows of all images, equal on every rank.

    Args:
        look: what is known of images in a row.
        count: N.
        batch: images at a time.
        ranks: the processes that share the work.
        parts: folder that keeps what is done; None: nothing is kept. Called again, it goes on from there.
        progress: what to write beside a bar with the time left; None: no bar.

    Raises:
        ValueError: images that cannot be read; on several processes as SharedError.
    """
    starts = range(0, count, _PART)[ranks.rank :: ranks.world_size]
    mine: dict[int, Rows] = {}
    with ranks.together(), _bar(progress, sum(min(_PART, count - s) for s in starts), ranks) as bar:
        for start in starts:
            part = range(start, min(start + _PART, count))
            file = None if parts is None else parts / f"{start:07d}.npz"
            rows = None if file is None else _read_part(file)
            if rows is None:
                batches = [range(at, min(at + batch, part.stop)) for at in range(start, part.stop, batch)]
                rows = _joined([_with_progress(look, indices, bar) for indices in batches])
                if file is not None:
                    _write_part(file, rows)
            else:
                bar.update(len(part))
            mine[start] = rows
    return _gathered(mine, count, ranks)


def _bar(progress: str | None, total: int, ranks: Distributed) -> tqdm:  # type: ignore[type-arg]
    """The first process speaks, of its own images: the others have as many."""
    hidden = True if progress is None or not ranks.is_first else None  # None: hidden unless on a terminal
    return tqdm(total=total, unit="image", desc=progress, disable=hidden)


def _with_progress(look: Callable[[range], Rows], indices: range, bar: tqdm) -> Rows:  # type: ignore[type-arg]
    rows = look(indices)
    bar.update(len(indices))
    return rows


def _joined(parts: list[Rows]) -> Rows:
    return {name: numpy.concatenate([part[name] for part in parts]) for name in parts[0]}


def _write_part(file: Path, rows: Rows) -> None:
    buffer = io.BytesIO()
    numpy.savez(buffer, **rows)  # type: ignore[arg-type]  # its stubs take an array for allow_pickle
    checkpoint.write_file(file, buffer.getvalue())


def _read_part(file: Path) -> Rows | None:
    """What was kept; None where nothing was, or what was is damaged and must be done again."""
    try:
        with file.open("rb") as stream, numpy.load(stream, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _gathered(mine: dict[int, Rows], count: int, ranks: Distributed) -> Rows:
    """The rows of all processes in order: each adds its own to zeros, and all of them have the sum."""
    if ranks.world_size == 1:
        return _joined([mine[start] for start in sorted(mine)])
    own = {name: (str(v.dtype), v.shape[1:]) for name, v in next(iter(mine.values()), {}).items()}
    layout = next(found for found in map(json.loads, ranks.gather(json.dumps(own))) if found)
    most = [
        max((len(rows["shown"]) + start for start, rows in mine.items() if len(rows["shown"])), default=0)
    ]
    num_shown = max(json.loads(text)[0] for text in ranks.gather(json.dumps(most)))
    whole = {
        name: numpy.zeros((num_shown if name == "shown" else count, *shape), dtype)
        for name, (dtype, shape) in sorted(layout.items())
    }
    for start, rows in mine.items():
        for name, values in rows.items():
            whole[name][start : start + len(values)] = values
    ranks.sum_([torch.from_numpy(values) for values in whole.values()])  # in place: numpy sees it
    return whole


def make_reference(
    images: SourceImages | NpzImages, extractor: Extractor, *, features: Features, kind: Kind, name: str,
    ranks: Distributed, progress: str | None,
) -> Reference:  # fmt: skip
    """The statistics of images, which pass by once.

    Args:
        images: what scores are to be held against.
        extractor: the network whose features are compared.
        features: its name.
        kind: what the user says they are.
        name: what to call them.
        ranks: the processes that share the work.
        progress: as of `measure`.

    Raises:
        ValueError: an image that cannot be read, features that are not finite, or fewer than two images.
    """
    if images.count < 2:
        raise ValueError(f"{name} holds {images.count} images: a reference needs at least 2 samples")
    moments, spatial = Moments(extractor.dim), None
    kept = chosen_indices(images.count, NUM_KEPT)
    kept_nD = torch.zeros(len(kept), extractor.dim)
    starts = range(0, images.count, _BATCH)[ranks.rank :: ranks.world_size]
    with ranks.together(), _bar(progress, sum(min(_BATCH, images.count - s) for s in starts), ranks) as bar:
        for start in starts:
            indices = range(start, min(start + _BATCH, images.count))
            seen = extractor(images.read(indices)[0])
            moments.add(seen["pool"])
            if "spatial" in seen:
                spatial = spatial or Moments(seen["spatial"].shape[1])
                spatial.add(seen["spatial"])
            first, last = numpy.searchsorted(kept, [indices.start, indices.stop])
            kept_nD[first:last] = seen["pool"].cpu().float()[kept[first:last] - start]
            bar.update(len(indices))
    ranks.sum_([kept_nD])
    record = ReferenceRecord(
        kind=kind, source=name, count=images.count, image_size=images.image_size,
        preprocessing=images.preprocessing, features=features, metric=extractor.metric_name,
        features_digest=extractor.digest, class_names=images.class_names, versions=versions(),
    )  # fmt: skip
    return Reference(record, moments.reduced(ranks), _reduced_if_any(spatial, ranks), kept_nD)


def _reduced_if_any(moments: Moments | None, ranks: Distributed) -> Moments | None:
    """The moments of all processes, of which some may have had no image and know of no such features."""
    width = max(int(text) for text in ranks.gather(str(0 if moments is None else len(moments.mean_D))))
    return (moments or Moments(width)).reduced(ranks) if width else None
