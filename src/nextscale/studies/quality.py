"""How good the samples of each family are: in the end, on the way there, and sampled in several ways.

Special here: all families make the same classes from the same seeds. Fréchet distances depend on the number
of samples, so figures that are compared with one another are of equally many. Guidance and the like decide a
distance as much as a family does, so each family comes to the main table with the best of its ways to sample.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nextscale import checkpoint
from nextscale.data.sources import Source
from nextscale.distributed import Distributed
from nextscale.evaluate.images import Samples, SourceImages
from nextscale.evaluate.measure import make_reference
from nextscale.evaluate.scoring import Scorer
from nextscale.evaluate.statistics import Reference, check_features, read_statistics, write_reference
from nextscale.features.classifier import Classifier, load_classifier
from nextscale.features.extractor import Extractor, load_extractor
from nextscale.generate.folder import load_prior, load_tokenizer
from nextscale.generate.generator import Generator
from nextscale.generate.precision import Dtype
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
            f"{size[1]}: set features inception, dinov2 or classifier, and weights"
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


def score_family(study: ComparisonStudy, plan: Plan, scorer: Scorer, *, folder: Path, voice: Voice) -> Result:
    """All scores of a family, each kept in a folder of its own as soon as it is there.

    Returns:
        ``step``, after which the compared weights were there; ``samplings``, the scores of few samples of
        each way, by name; ``chosen``, the name of the best candidate among them; ``main``, the scores of many
        samples of that one; ``looks``, few samples of it at points of the training, a list of ``step``,
        ``images``, ``flops`` and ``scores``.

    Raises:
        ValueError: images that cannot be scored, or kept scores of other settings.
    """
    few, metric = replace(scorer, num_resamples=0), scorer.reference.record.metric
    place, home = folder / "scores" / plan.name, folder / "priors" / plan.name
    generator = load_trained(study, plan, folder, device=scorer.ranks.device)
    voice.say(f"scores of {plan.name}")
    samplings = {
        way.name: _score(
            _Samples(study, generator, way, study.few_samples), few, place / "samplings" / way.name
        )
        for way in plan.family.samplings
    }
    best = min(
        (way for way in plan.family.samplings if way.candidate),
        key=lambda way: samplings[way.name]["scores"][metric]["value"],
    )
    main = _score(_Samples(study, generator, best, study.num_samples), scorer, place / "main")
    points = []
    for step in looks(plan, study.looks):
        if step == plan.prior.loop.num_steps and study.checkpoint == "last":
            scores = samplings[best.name]
        else:
            of_step = _Samples(
                study, on_the_way(home, step, generator, dtype=study.precision), best, study.few_samples
            )
            scores = _score(of_step, few, place / f"step-{step:08d}")
        images = step * plan.prior.loop.batch_size
        flops = plan.cost.training_flops * images
        points.append({"step": step, "images": images, "flops": flops, "scores": scores})
    step = _step_of(study, plan, home)
    return {"chosen": best.name, "step": step, "main": main, "samplings": samplings, "looks": points}


def _step_of(study: ComparisonStudy, plan: Plan, home: Path) -> int:
    """After which step the compared weights were there."""
    last = plan.prior.loop.num_steps
    state = json.loads((home / "checkpoints" / f"step-{last:08d}" / "state.json").read_text())
    return last if study.checkpoint == "last" else int(state["best_step"])


def load_trained(study: ComparisonStudy, plan: Plan, folder: Path, *, device: torch.device) -> Generator:
    """A family's generator with the weights that the study compares."""
    name = "model" if study.checkpoint == "last" else "best"
    home = folder / "priors" / plan.name / name
    return Generator.load(home, device=device, dtype=study.precision)


def on_the_way(home: Path, step: int, trained: Generator, *, dtype: Dtype) -> Generator:
    """The averaged weights of a checkpoint. Raises ValueError when it is missing or damaged."""
    place = home / "checkpoints" / f"step-{step:08d}"
    checkpoint.check_digests(place)
    file = place / "average.safetensors"
    prior = load_prior(home / "model", trained.settings)
    checkpoint.load_into(prior, checkpoint.read_tensors(file), source=str(file))
    device = trained.prior.position.device
    tokenizer = load_tokenizer(home / "model", trained.settings)
    return Generator(trained.settings, tokenizer.to(device), prior.to(device), dtype=dtype)


class _Samples(Samples):
    """Samples of a study, and how it makes them."""

    def __init__(self, study: ComparisonStudy, generator: Generator, way: Sampled, count: int) -> None:
        super().__init__(generator, count=count, first_seed=0, sampling=way.given)
        self.study = study


def _score(samples: _Samples, scorer: Scorer, place: Path) -> Result:
    asked = {
        "samples": {
            "count": samples.count, "first_seed": samples.first_seed, "precision": samples.study.precision,
            "checkpoint": samples.study.checkpoint, "sampling": samples.generator.sampling(samples.sampling),
        }
    }  # fmt: skip
    _claim(place, asked["samples"])
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
