"""Rejection sampling: several candidates per image, of which the one with the highest score stays.

Letters: B batch.
Special here: an image has candidates of its own, whose seeds follow from its seed alone, so it is the same
whatever else is asked for and in whatever batches they are drawn. Candidate 0 has the image's own seed. The
paper's best FID (VAR-d30, 1.73) comes from rejection sampling; at which rate, we do not know. A score by the
classifier that chose is no evidence: judge by another network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Unpack, cast

import numpy
import torch
from torch import Tensor

from nextscale.generate.editing import Picture
from nextscale.generate.generator import Generator
from nextscale.generate.request import Label, Sampling, build_request, resolve_label
from nextscale.generate.result import Result
from nextscale.pixels import to_uint8
from nextscale.rng import candidate_seed

#: Images float32 (B, 3, H, W) in [-1, 1] and labels int64 (B,) -> float (B,), larger is better.
Scorer = Callable[[Tensor, Tensor], Tensor]
#: What was drawn and labels int64 (B,) -> float (B,), larger is better.
EditScorer = Callable[[Result, Tensor], Tensor]

#: How far 1 / share may lie from a whole number: 0.33 is a third.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class Kept:
    """What rejection sampling kept."""

    result: Result
    seeds: tuple[int, ...]  #: of the kept candidates: they give the same images without rejection
    scores: tuple[float, ...]
    num_drawn: int

    @property
    def acceptance_rate(self) -> float:
        """Images kept / images drawn."""
        return len(self.seeds) / self.num_drawn


@dataclass(frozen=True)
class Edits:
    """Candidates of one edit."""

    images: numpy.ndarray  #: uint8 (N, H, W, 3)
    seeds: tuple[int, ...]
    scores: tuple[float, ...]  #: larger is better; none when nobody scored

    @property
    def best(self) -> int:
        """Which of them scores highest; the first of them where several do."""
        return int(numpy.argmax(self.scores)) if self.scores else 0


def num_candidates(share: float) -> int:
    """How many candidates an image has when this share of all is kept: 1 / share.

    Raises:
        ValueError: not in (0, 1], or not one of a whole number (a half, a third, ...).
    """
    if not 0 < share <= 1:
        raise ValueError(
            f"share {share} of candidates to keep is out of range: expected more than 0, at most 1"
        )
    count = round(1 / share)
    if abs(1 / share - count) > _TOLERANCE:
        raise ValueError(
            f"share {share} of candidates to keep must be one of a whole number, "
            f"for example {1 / count:.4g} (the best of {count})"
        )
    return count


@torch.no_grad()
def keep_best(
    generator: Generator, labels: Sequence[Label], *, seeds: Sequence[int], candidates: int, score: Scorer,
    batch_size: int = 50, on_drawn: Callable[[int], object] = lambda _: None, **settings: Unpack[Sampling],
) -> Kept:  # fmt: skip
    """Make one image per label: the candidate that scores highest, the first of them where several do.

    Args:
        generator: draws.
        labels: class numbers or names.
        seeds: one per image; those of its further candidates follow from it (`candidate_seed`).
        candidates: how many to draw for each image.
        score: see `Scorer`.
        batch_size: images at a time.
        on_drawn: told after each batch how many images it had.
        settings: as for the generator.

    Raises:
        ValueError: as the generator; an image without a class, which cannot be scored; fewer than one
            candidate; a score that is no finite number.
    """
    if candidates < 1 or batch_size < 1:
        raise ValueError(f"candidates {candidates} and batch_size {batch_size} must be at least 1")
    if any(label is None for label in labels):
        raise ValueError("label None has no class that a classifier could look for: give classes")
    device = generator.prior.position.device
    checked = build_request(
        labels, seeds, generator.settings, overrides=settings, smooth=False, device=device
    )
    pairs = [(image, number) for image in range(len(labels)) for number in range(candidates)]
    best: dict[int, tuple[float, int, Tensor, Tensor | None]] = {}
    for start in range(0, len(pairs), batch_size):
        part = pairs[start : start + batch_size]
        images = [image for image, _ in part]
        tried = [candidate_seed(checked.seeds[image], number) for image, number in part]
        result = generator([labels[image] for image in images], seeds=tried, **_rows(settings, images))
        scores = score(result.images_BCHW, checked.labels_B[images])
        if not bool(scores.isfinite().all()):
            raise ValueError("the scorer gave a score that is no finite number: images cannot be compared")
        tokens_BL = result.tokens_BL  # diffusion draws none
        for row, (image, value) in enumerate(zip(images, scores.tolist(), strict=True)):
            if image not in best or value > best[image][0]:
                # copies, or each row would keep its whole batch in memory
                drawn = None if tokens_BL is None else tokens_BL[row].clone()
                best[image] = value, tried[row], result.images_BCHW[row].clone(), drawn
        on_drawn(len(part))
    values, kept_seeds, kept_images, tokens = zip(*(best[image] for image in range(len(labels))), strict=True)
    whole = None if tokens[0] is None else torch.stack(tokens)
    return Kept(Result(torch.stack(kept_images), whole), kept_seeds, values, len(pairs))


@torch.no_grad()
def draw_edits(
    generator: Generator, image: Picture, *, label: Label, seed: int, candidates: int,
    score: EditScorer | None = None, batch_size: int = 16, **settings: Any,
) -> Edits:  # fmt: skip
    """Edit one image several times, and say how good each result is.

    Args:
        generator: draws.
        image: as `Generator.edit` takes it.
        label: class number or name; None is no class.
        seed: of the first candidate; those of the others follow from it (`candidate_seed`).
        candidates: how many.
        score: such as `nextscale.evaluate.likelihood.EditLikelihood`; None: nobody judges.
        batch_size: candidates at a time.
        settings: mask, task and what else `Generator.edit` takes.

    Raises:
        ValueError: as `Generator.edit`; fewer than one candidate.
    """
    if candidates < 1 or batch_size < 1:
        raise ValueError(f"candidates {candidates} and batch_size {batch_size} must be at least 1")
    seeds = tuple(candidate_seed(seed, number) for number in range(candidates))
    number, device = resolve_label(label, generator.class_names), generator.prior.position.device
    images, scores = [], []
    for start in range(0, candidates, batch_size):
        part = seeds[start : start + batch_size]
        result = generator.edit(image, labels=[label] * len(part), seeds=part, **settings)
        images.append(to_uint8(result.images_BCHW))
        if score is not None:
            scores += score(result, torch.full((len(part),), number, device=device)).tolist()
    return Edits(numpy.concatenate(images), seeds, tuple(scores))


def _rows(settings: Sampling, images: Sequence[int]) -> Sampling:
    """The settings of some images, where they have settings of their own."""
    chosen = {
        name: value
        if value is None or isinstance(value, (int, float, str, numpy.number))
        else [value[image] for image in images]  # type: ignore[index]
        for name, value in settings.items()
    }
    return cast(Sampling, chosen)
