"""What ``nextscale evaluate`` scores against a reference: samples, reconstructions, images from anywhere."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextscale.cli.references import open_images
from nextscale.cli.sample import sampling_options
from nextscale.data.sources import open_source
from nextscale.distributed import Distributed
from nextscale.evaluate.images import (
    Images,
    Reconstructions,
    Samples,
    SourceImages,
    check_labels,
    share_of_jpegs,
)
from nextscale.evaluate.npz import NpzImages
from nextscale.evaluate.settings import Features, Kind, Protocol
from nextscale.features.classifier import Classifier, load_classifier
from nextscale.features.perceptual import PerceptualDistance, load_perceptual
from nextscale.features.settings import PerceptualSettings
from nextscale.generate.folder import model_digest
from nextscale.generate.generator import Generator
from nextscale.models import find_model, is_model

_NUM_SAMPLES = 1000


@dataclass(frozen=True)
class Subject:
    """What is scored."""

    images: Images
    reference_kind: Kind  #: that published figures of such images are held against
    description: dict[str, Any]  #: stands at the head of the result
    warnings: tuple[str, ...] = ()


def open_subject(options: argparse.Namespace, protocol: Protocol | None, ranks: Distributed) -> Subject:
    """What the first word of the command line and ``--data`` name.

    Raises:
        ValueError: nothing of that kind is there, or options that have no effect on it.
    """
    if not is_model(options.model):
        return _given_images(options)
    folder = find_model(options.model)
    generator = Generator.load(folder, device=ranks.device, dtype=options.dtype or "float32")
    model = {"name": options.model, "digest": model_digest(folder)}
    if options.data:
        return _reconstructions(options, generator, model, ranks)
    _refuse(
        options, ("limit", "lpips_weights", "lpips_heads"), "samples: give --data to score reconstructions"
    )
    generator.prior  # noqa: B018  # raises for a model without one
    if protocol is not None and len(generator.class_names) != protocol.num_classes:
        raise ValueError(
            f"--protocol {options.protocol} is for {protocol.num_classes} classes, the model has "
            f"{len(generator.class_names)}: give another protocol"
        )
    count = protocol.num_samples if protocol else options.num_samples
    first_seed = protocol.first_seed if protocol else options.seed or 0
    count = _NUM_SAMPLES if count is None else count
    sampling = {**sampling_options(options), **(protocol.sampling if protocol else {})}
    images = Samples(generator, count=count, first_seed=first_seed, sampling=sampling)
    if protocol is not None:
        model |= {"protocol": {"name": options.protocol, **protocol.model_dump(mode="json")}}
    return samples_of(images, model)


def samples_of(images: Samples, head: Mapping[str, Any]) -> Subject:
    """Samples with everything that they depend on. Raises ValueError for too few or for bad settings."""
    if images.count < 2:
        raise ValueError(f"--num-samples {images.count}: a reference needs at least 2 images to score")
    images.read(range(1))  # a setting out of range shall be found before the reference is read
    protocol = {"protocol": head["protocol"]} if "protocol" in head else {}
    return Subject(images, "training", {
        "scored": "samples", "model": {name: head[name] for name in ("name", "digest")}, **protocol,
        "samples": {
            "count": images.count, "first_seed": images.first_seed,
            "last_seed": images.first_seed + images.count - 1,
            "dtype": str(images.generator.dtype).removeprefix("torch."),
            "sampling": images.generator.sampling(images.sampling),
        },
    })  # fmt: skip


def _reconstructions(
    options: argparse.Namespace, generator: Generator, model: dict[str, Any], ranks: Distributed
) -> Subject:
    if options.num_samples:
        raise ValueError(
            "--num-samples has no effect with --data and --reference: score samples in a call of their own"
        )
    _refuse(
        options, ("guidance", "top_k", "top_p", "temperature", "seed", "protocol", "dtype"), "reconstructions"
    )
    perceptual = _perceptual(options, ranks)
    size = generator.tokenizer.image_size
    if perceptual is not None:
        perceptual.check_size(size)
    originals = SourceImages(open_source(options.data), size=size, limit=options.limit)
    images = Reconstructions(generator.tokenizer, originals, perceptual=perceptual)
    data = {"source": options.data, "count": images.count, "preprocessing": originals.preprocessing}
    description = {"scored": "reconstructions", "model": model, "data": data}
    if perceptual is not None:
        description["lpips"] = {"weights": options.lpips_weights, "heads": options.lpips_heads}
    return Subject(images, "validation", description)


def _perceptual(options: argparse.Namespace, ranks: Distributed) -> PerceptualDistance | None:
    weights, heads = options.lpips_weights, options.lpips_heads
    if not weights and not heads:
        return None
    if not weights or not heads:
        raise ValueError("--lpips-weights and --lpips-heads belong together: LPIPS is defined by both")
    settings = PerceptualSettings(network="vgg16", weights=weights, heads=heads)
    return load_perceptual(settings).to(ranks.device)


def _given_images(options: argparse.Namespace) -> Subject:
    """Images that somebody else made, or real ones."""
    _refuse(options, (
        "num_samples", "guidance", "top_k", "top_p", "temperature", "seed", "data", "protocol", "sweep",
        "lpips_weights", "lpips_heads", "dtype",
    ), "images that are there already")  # fmt: skip
    if not Path(options.model).exists() and "/" not in options.model and "*" not in options.model:
        find_model(options.model)  # names the nearest model
    images = open_images(options.model, limit=options.limit)
    if images.count < 2:
        raise ValueError(f"{options.model} holds {images.count} images: give at least 2 to score")
    warnings = []
    if isinstance(images, SourceImages) and (share := share_of_jpegs(images.source)):
        warnings.append(
            f"{share:.0%} of the images looked at are JPEGs, whose losses change scores: keep samples as PNG "
            "or .npz"
        )
    description = {"scored": "images", "images": {"source": options.model, "count": images.count}}
    return Subject(images, "training", description, tuple(warnings))


def _refuse(options: argparse.Namespace, names: tuple[str, ...], what: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} has no effect on {what}")


def find_classifier(
    images: Images, *, features: Features, weights: str | None, demanded: bool,
    reference_classes: tuple[str, ...] | None, ranks: Distributed,
) -> Classifier | None:  # fmt: skip
    """The classifier that looks at the images anyway, or the bundled one, where it knows their classes.

    Args:
        images: that are scored.
        features: what looks at them.
        weights: of that; of a classifier its folder.
        demanded: without it no agreement is no error.
        reference_classes: of the images that they are held against, where known.
        ranks: whose device is used.

    Raises:
        ValueError: agreement is demanded, but of images without labels, of another size, or of other classes.
    """
    classifier = load_classifier(Path(weights)) if features == "classifier" and weights else load_classifier()
    names, side = classifier.settings.class_names, classifier.settings.image_size
    if demanded and isinstance(images, NpzImages):
        images.class_names = names  # its labels are numbers; whoever demands agreement says whose they are
    fits = images.class_names == names and images.image_size == (side, side)
    if demanded and images.labels is None:
        raise ValueError("--class-agreement needs labels: the images have none")
    if demanded and not fits:
        raise ValueError(
            f"--class-agreement: the classifier knows {side} x {side} pixels of "
            f"{', '.join(names)}, given {images.image_size[0]} x {images.image_size[1]} pixels of "
            f"{', '.join((images.class_names or ())[:5])}: leave it out"
        )
    if demanded and images.labels is not None:
        check_labels(images.labels, len(names), where="the file of images")
    if (
        demanded
        and reference_classes is not None
        and len(reference_classes) > 1
        and reference_classes != names
    ):
        raise ValueError(
            f"--class-agreement: the reference has other classes ({', '.join(reference_classes[:5])}): "
            "give one of the same classes, or leave it out"
        )
    return classifier.to(ranks.device) if fits else None
