"""How good the samples of each family are: in the end, on the way there, and sampled in several ways.

Special here: all families make the same classes from the same seeds. Fréchet distances depend on the number
of samples, so figures that are compared with one another are of equally many.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nextscale import checkpoint
from nextscale.data.sources import Source
from nextscale.distributed import Distributed
from nextscale.evaluate.images import Samples, SourceImages
from nextscale.evaluate.measure import make_reference
from nextscale.evaluate.scoring import Scorer
from nextscale.evaluate.statistics import Reference, check_features, read_statistics, write_reference
from nextscale.features.classifier import Classifier, load_classifier
from nextscale.features.extractor import Extractor, load_extractor
from nextscale.generate.generator import Generator
from nextscale.studies.families import Plan, looks
from nextscale.studies.runs import Voice
from nextscale.studies.settings import ComparisonStudy, Sampled

Result = dict[str, Any]


def open_scorer(
    study: ComparisonStudy, source: Source, size: tuple[int, int], *, folder: Path, ranks: Distributed,
    progress: bool,
) -> Scorer:  # fmt: skip
    """What holds samples against the training images, whose statistics are made once.

    Args:
        study: which features.
        source: the training images.
        size: (H, W) of the samples.
        folder: of the study.
        ranks: this process.
        progress: show bars.

    Raises:
        ValueError: features that do not take such images, or weights that are missing.
    """
    extractor = load_extractor(study.features, study.weights or None, device=ranks.device)
    side = extractor.image_size
    if side is not None and size != (side, side):
        raise ValueError(
            f"features {study.features} look at images of {side} x {side} pixels, not of {size[0]} x "
            f"{size[1]}: set features inception or dinov2, and weights"
        )
    reference = _reference(
        study, source, size, extractor=extractor, file=folder / "reference.npz", ranks=ranks,
        progress=progress,
    )  # fmt: skip
    return Scorer(
        extractor, reference, _classifier(source, size, ranks), batch=study.batch, ranks=ranks,
        num_resamples=study.resamples, progress=progress,
    )  # fmt: skip


def _reference(
    study: ComparisonStudy, source: Source, size: tuple[int, int], *, extractor: Extractor, file: Path,
    ranks: Distributed, progress: bool,
) -> Reference:  # fmt: skip
    if file.is_file():
        reference = read_statistics(file, kind="training")
        check_features(reference, features=study.features, digest=extractor.digest, image_size=size)
        return reference
    reference = make_reference(
        SourceImages(source, size=size), extractor, features=study.features, kind="training",
        name=study.data.source, ranks=ranks, progress="reference" if progress else None,
    )  # fmt: skip
    write_reference(file, reference)
    return reference


def _classifier(source: Source, size: tuple[int, int], ranks: Distributed) -> Classifier | None:
    """The bundled classifier where it knows the classes."""
    classifier = load_classifier()
    side = classifier.settings.image_size
    fits = classifier.settings.class_names == source.class_names and size == (side, side)
    return classifier.to(ranks.device) if fits else None


def score_families(
    study: ComparisonStudy, plans: Sequence[Plan], scorer: Scorer, *, folder: Path, voice: Voice
) -> dict[str, Result]:
    """All scores of all families, each kept in a folder of its own as soon as it is there.

    Returns:
        By family: ``main``, the scores of the first way to sample; ``samplings``, few samples of each way, by
        name; ``looks``, few samples at points of the training, a list of ``step``, ``images``, ``flops`` and
        ``scores``.

    Raises:
        ValueError: images that cannot be scored, or kept scores of other settings.
    """
    few = replace(scorer, num_resamples=0)
    results: dict[str, Result] = {}
    for plan in plans:
        place, home = folder / "scores" / plan.name, folder / "priors" / plan.name
        generator = Generator.load(home / "model", device=scorer.ranks.device)
        first = plan.family.samplings[0]
        voice.say(f"scores of {plan.name}")
        main = _score(scorer, generator, first, study.num_samples, place / "main")
        samplings = {
            way.name: _score(few, generator, way, study.few_samples, place / "samplings" / way.name)
            for way in plan.family.samplings
        }
        points = []
        for step in looks(plan, study.looks):
            if step == plan.prior.loop.num_steps:
                scores = samplings[first.name]
            else:
                load_average(generator, home / "checkpoints" / f"step-{step:08d}")
                scores = _score(few, generator, first, study.few_samples, place / f"step-{step:08d}")
            images = step * plan.prior.loop.batch_size
            flops = plan.cost.training_flops * images
            points.append({"step": step, "images": images, "flops": flops, "scores": scores})
        results[plan.name] = {"main": main, "samplings": samplings, "looks": points}
    return results


def load_average(generator: Generator, place: Path) -> None:
    """The averaged weights of a checkpoint. Raises ValueError when it is missing or damaged."""
    checkpoint.check_digests(place)
    file = place / "average.safetensors"
    checkpoint.load_into(generator.prior, checkpoint.read_tensors(file), source=str(file))


def _score(scorer: Scorer, generator: Generator, way: Sampled, count: int, place: Path) -> Result:
    prior = generator.settings.prior
    assert prior is not None
    sampling = generator.settings.sampling.known_to(prior.kind) | way.given
    asked = {"samples": {"count": count, "first_seed": 0, "sampling": sampling}}
    _claim(place, asked["samples"])
    samples = Samples(generator, count=count, first_seed=0, sampling=way.given)
    return scorer(samples, description=asked, folder=place, name=place.name)


def _claim(place: Path, asked: dict[str, Any]) -> None:
    """Note what a folder's scores are of, before the first of them: parts of others must not get in."""
    note = place / "samples.json"
    if not note.is_file():
        checkpoint.write_json(note, asked)
    elif (noted := json.loads(note.read_text())) != asked:
        raise ValueError(
            f"{place} holds scores of {noted}, not of {asked}: give the sampling another name, the study "
            "another --out, or remove that folder"
        )
