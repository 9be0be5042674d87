"""The images that scores are held against, as statistics of their features, and files of such statistics.

Letters: N images, n kept images, D features.
Special here: a reference says what it is (training or validation images, of which source, how prepared, seen
by which network), and what is not known of it is said to be unknown. Files are ``.npz`` without
pickles: ``mu`` and ``sigma`` as other tools expect them, the record as JSON, features of some images, and a
digest over all of it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch
from pydantic import ValidationError
from torch import Tensor

from nextscale import __version__, checkpoint
from nextscale.evaluate.moments import Moments
from nextscale.evaluate.npz import names_in, read_arrays
from nextscale.evaluate.settings import Features, Kind, ReferenceRecord

#: Images whose features a reference keeps, spread over all of them, as the reference evaluator has 10,000.
NUM_KEPT = 10_000
#: Width of Inception's features, which published statistics hold.
_INCEPTION_DIM = 2048
_PUBLISHED, _PUBLISHED_SPATIAL = ("mu", "sigma"), ("mu_s", "sigma_s")


@dataclass(frozen=True)
class Reference:
    """What scores are held against."""

    record: ReferenceRecord
    moments: Moments
    spatial: Moments | None = None  #: of Inception's spatial features, for sFID
    kept_nD: Tensor | None = None  #: float32, features of some images, for scores of pairs of images

    @property
    def description(self) -> dict[str, Any]:
        """The record without versions: what decides which scores come out."""
        return self.record.model_dump(mode="json", exclude={"versions"}) | {"content_digest": self.digest}

    @property
    def digest(self) -> str:
        """SHA-256 over the numbers."""
        return _digest({name: value for name, value in _arrays(self).items() if name != "record"})


def versions() -> dict[str, str]:
    """What a figure was made with."""
    found = {name: version(name) for name in ("torch", "numpy")}
    return {"nextscale": __version__, **found, "python": platform.python_version()}


def write_reference(path: Path, reference: Reference) -> None:
    """Write a file of statistics, whole or not at all."""
    arrays = _arrays(reference)
    with checkpoint.new_file(path) as file:
        arrays = arrays | {"digest": numpy.array(_digest(arrays))}
        numpy.savez(file, **arrays)  # type: ignore[arg-type]  # its stubs take an array for allow_pickle


def _arrays(reference: Reference) -> dict[str, numpy.ndarray]:
    arrays = {
        "record": numpy.array(reference.record.model_dump_json()),
        "count": numpy.array(reference.moments.count),
        "mu": reference.moments.mean_D.numpy(), "sigma": reference.moments.covariance_DD.numpy(),
    }  # fmt: skip
    if reference.spatial is not None:
        arrays |= {
            "mu_s": reference.spatial.mean_D.numpy(), "sigma_s": reference.spatial.covariance_DD.numpy()
        }  # fmt: skip
    if reference.kept_nD is not None:
        arrays["features"] = reference.kept_nD.numpy()
    return arrays


def _digest(arrays: Mapping[str, numpy.ndarray]) -> str:
    """SHA-256 over names, types, shapes and contents."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.str} {array.shape};".encode())
        found.update(numpy.ascontiguousarray(array).data if array.ndim else array.tobytes())
    return found.hexdigest()


def is_statistics(path: Path) -> bool:
    """Whether a file holds statistics, ours or published ones. Raises ValueError when it is damaged."""
    return path.suffix == ".npz" and path.is_file() and set(_PUBLISHED) <= names_in(path)


def read_statistics(path: Path, *, kind: Kind | None) -> Reference:
    """A reference from a file that `write_reference` wrote, or that was published for Inception's features.

    Args:
        path: of the file.
        kind: what the user says it is; None where the file says so itself.

    Raises:
        ValueError: damaged, not such a file, of another kind than said, or of no kind that is known.
    """
    if "record" not in names_in(path):
        return _read_published(path, kind=kind)
    arrays = read_arrays(path, sorted(names_in(path)))
    if str(arrays.pop("digest", "")) != _digest(arrays):
        raise ValueError(f"{path} was changed or damaged: its digest is not the recorded one; make it anew")
    try:
        record = ReferenceRecord.model_validate(json.loads(str(arrays["record"])))
    except (ValidationError, ValueError) as error:
        raise ValueError(f"{path}: its record is not understood: {' '.join(str(error).split())}") from error
    if kind is not None and kind != record.kind:
        raise ValueError(
            f"{path} holds statistics of {record.kind} images, not of {kind} images: leave out "
            "--reference-kind"
        )
    count = int(arrays["count"])
    kept = torch.from_numpy(arrays["features"]) if "features" in arrays else None
    return Reference(record, _moments(arrays, _PUBLISHED, count, path),
                     _moments(arrays, _PUBLISHED_SPATIAL, count, path) if "mu_s" in arrays else None,
                     kept)  # fmt: skip


def _read_published(path: Path, *, kind: Kind | None) -> Reference:
    names = [name for name in (*_PUBLISHED, *_PUBLISHED_SPATIAL) if name in names_in(path)]
    arrays = read_arrays(path, names)
    if kind is None:
        raise ValueError(
            f"{path} does not say whether it describes training or validation images: give --reference-kind"
        )
    if arrays["mu"].shape != (_INCEPTION_DIM,):
        raise ValueError(
            f"{path}: mu is {arrays['mu'].shape}: expected ({_INCEPTION_DIM},), or a file that nextscale "
            "statistics wrote"
        )
    record = ReferenceRecord(
        kind=kind, source=str(path), count=None, image_size=None, features="inception", metric="FID",
        preprocessing="unknown: published statistics", features_digest=None, class_names=None, versions={},
    )  # fmt: skip
    spatial = _moments(arrays, _PUBLISHED_SPATIAL, 2, path) if "mu_s" in arrays else None
    return Reference(record, _moments(arrays, _PUBLISHED, 2, path), spatial)


def _moments(arrays: Mapping[str, numpy.ndarray], names: tuple[str, str], count: int, path: Path) -> Moments:
    """Where a file does not say how many images there were, any ``count`` gives the same distance."""
    mean, covariance = (torch.from_numpy(numpy.asarray(arrays[name], numpy.float64)) for name in names)
    try:
        return Moments.from_tensors(
            {"count": torch.tensor(count), "mean_D": mean, "covariance_DD": covariance}
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_kind(given: Kind, expected: Kind, *, source: str, scored: str) -> None:
    """Raise ValueError unless a reference is of the kind that such scores are held against."""
    if given != expected:
        raise ValueError(
            f"{source} stands for {given} images, but {scored} are scored against {expected} images, as "
            "published figures are: give those, or --any-reference to do it anyway"
        )


def check_features(
    reference: Reference, *, features: Features, digest: str, image_size: tuple[int, int]
) -> None:
    """Raise ValueError unless a reference was made by this very network from images of this size."""
    record = reference.record
    if record.features != features:
        raise ValueError(
            f"{record.source}: statistics of {record.features} features, not of {features}: give "
            f"--features {record.features}, or make others with nextscale statistics"
        )
    if record.features_digest not in (None, digest):
        raise ValueError(
            f"{record.source}: statistics by other {features} weights ({record.features_digest[:12]}, not "
            f"{digest[:12]}): give those weights, or make the statistics anew"
        )
    if record.image_size not in (None, image_size):
        raise ValueError(
            f"{record.source}: statistics of images of {_by(record.image_size)} pixels, not "
            f"{_by(image_size)}: make them anew with nextscale statistics --size {_plain(image_size)}"
        )


def _by(size: tuple[int, int] | None) -> str:
    assert size is not None
    return f"{size[0]} x {size[1]}"


def _plain(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]} {size[1]}"
