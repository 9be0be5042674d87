"""One set of images against one reference, from the first pixel to the record of the result.

Special here: a result names its reference, features, settings and versions, or it would be no result. With a
folder it survives a kill and is done once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from nextscale import checkpoint
from nextscale.distributed import Distributed
from nextscale.evaluate.images import Images, Reconstructions, Samples, SourceImages
from nextscale.evaluate.measure import Looker, Rows, measure
from nextscale.evaluate.scores import (
    frechet_score,
    reconstruction_means,
    sample_scores,
    singular_warnings,
)
from nextscale.evaluate.statistics import Reference, versions
from nextscale.features.classifier import Classifier
from nextscale.features.extractor import Extractor
from nextscale.pixels import enlarge, grid

SCORES, PICTURE = "scores.json", "images.png"
_COLUMNS = 10
_PARTS = "parts"


@dataclass(frozen=True)
class Scorer:
    """Holds sets of images against a reference."""

    extractor: Extractor
    reference: Reference
    classifier: Classifier | None  #: None: no agreement of classes
    batch: int
    ranks: Distributed
    num_resamples: int  #: of the interval of a Fréchet distance; 0: none
    progress: bool

    def __call__(
        self,
        images: Images,
        *,
        description: Mapping[str, Any],
        folder: Path | None = None,
        name: str = "images",
    ) -> dict[str, Any]:
        """The result, which JSON can hold; on several processes the first one's is whole.

        Args:
            images: what is scored.
            description: what they are and how they came to be; stands at the head of the result.
            folder: gets the result and a picture; holds what is done so far. A finished one is read.
            name: what to write beside the progress bar.

        Raises:
            ValueError: images or features that cannot be scored.
        """
        finished = folder is not None and (folder / SCORES).is_file()
        if self.ranks.of_first(finished):
            assert folder is not None
            result: dict[str, Any] = json.loads((folder / SCORES).read_text())
            return result
        classes = len(images.class_names or ())
        look = Looker(
            images, self.extractor, classifier=self.classifier,
            num_shown=classes * _COLUMNS if 1 < classes <= _COLUMNS else _COLUMNS**2,
        )  # fmt: skip
        rows = measure(
            look, images.count, batch=self.batch, ranks=self.ranks, parts=folder and folder / _PARTS,
            progress=name if self.progress else None,
        )  # fmt: skip
        with self.ranks.together():
            result = self._result(rows, images, description) if self.ranks.is_first else {}
            if folder is not None and self.ranks.is_first:
                sheet = picture(rows["shown"], images)
                with checkpoint.new_file(folder / PICTURE) as file:
                    Image.fromarray(sheet).save(file, "PNG")
                checkpoint.write_json(folder / SCORES, result)  # last, for it says that all is done
                shutil.rmtree(folder / _PARTS, ignore_errors=True)
        return result

    def _result(self, rows: Rows, images: Images, description: Mapping[str, Any]) -> dict[str, Any]:
        result = dict(description)
        if isinstance(images, Reconstructions):
            distance = frechet_score(rows, self.reference, num_resamples=self.num_resamples)
            result["scores"] = {f"r{self.reference.record.metric}": distance}
            result["reconstruction"] = reconstruction_means(rows, images.tokenizer)
        else:
            result["scores"] = sample_scores(
                rows, self.reference, num_resamples=self.num_resamples,
                sorted_by_class=isinstance(images, SourceImages),
            )  # fmt: skip
        if "agreed" in rows:
            assert images.labels is not None and images.class_names is not None
            result |= agreement(rows["agreed"], images.labels, images.class_names)
        record = self.reference.record.model_dump(mode="json")
        return result | {
            "reference": record, "features_digest": self.extractor.digest, "versions": versions(),
            "warnings": [
                *description.get("warnings", ()), *singular_warnings(images.count, self.reference)
            ],
        }  # fmt: skip


def agreement(agreed: numpy.ndarray, labels: numpy.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The share of images that the classifier assigns to their label, in all and per class."""
    per_class = {
        name: float(agreed[labels == number].mean())
        for number, name in enumerate(class_names)
        if (labels == number).any()
    }
    return {"class_agreement": float(agreed.mean()), "class_agreement_per_class": per_class}


def picture(shown: numpy.ndarray, images: Images) -> numpy.ndarray:
    """The first images: of samples of a few classes a row per class; pairs where they are reconstructions."""
    count = len(images.class_names or ())
    columns = min(_COLUMNS, len(shown) // max(count, 1))
    if isinstance(images, Samples) and 1 < count <= _COLUMNS and columns:
        shown = numpy.concatenate([shown[number::count][:columns] for number in range(count)])
    else:
        columns = _COLUMNS
    return grid(enlarge(shown, max(1, 64 // shown.shape[1])), columns=columns)
