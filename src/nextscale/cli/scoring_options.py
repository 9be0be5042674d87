"""The options of ``nextscale evaluate``, ``statistics``, ``likelihood`` and ``neighbours``."""

from __future__ import annotations

import argparse

KINDS, FEATURES = ("training", "validation"), ("cifar", "classifier", "inception", "dinov2")
_SOURCE = "a source as for data check"


def add_evaluate_options(evaluate: argparse.ArgumentParser) -> None:
    """Options beside those of sampling."""
    evaluate.add_argument(
        "model", metavar="MODEL|IMAGES", help=f"bundled model, model folder, .npz, or {_SOURCE}"
    )
    _add_reference(evaluate)
    _add_features(evaluate)
    evaluate.add_argument(
        "--protocol", help="var-paper, cifar10 or a .toml file: fixes all that scores depend on"
    )
    evaluate.add_argument(
        "--sweep", action="append", metavar="NAME=FIRST:LAST:STEP",
        help="score at several values of a sampling setting, also NAME=VALUE,VALUE; may be repeated",
    )  # fmt: skip
    evaluate.add_argument(
        "--class-agreement", action="store_true",
        help="demand the share of images that the classifier (bundled, or that of --features classifier) "
        "assigns to their label",
    )  # fmt: skip
    evaluate.add_argument("--num-samples", type=int, help="samples to make, 0 for none (default: 1000)")
    evaluate.add_argument(
        "--data", help=f"images ({_SOURCE}) to reconstruct; without --reference also to predict"
    )
    evaluate.add_argument("--limit", type=int, help="images of --data or of IMAGES at most (default: all)")
    evaluate.add_argument(
        "--seed", type=int, help="seed of the first sample; the others count on (default: 0)"
    )
    evaluate.add_argument("--batch", type=int, help="images at a time (default: 50)")
    evaluate.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"),
        help="of the weights that samples are made with, as for sample (default: float32)",
    )  # fmt: skip
    evaluate.add_argument(
        "--resamples", type=int, help="draws behind the interval of a distance, 0 for none (default: 200)"
    )
    evaluate.add_argument("--lpips-weights", metavar="FILE", help="VGG16 for LPIPS of reconstructions")
    evaluate.add_argument("--lpips-heads", metavar="FILE", help="LPIPS weights per channel of it")
    evaluate.add_argument(
        "--out", help="folder of scores.json and pictures; with --reference, run again to go on"
    )
    evaluate.add_argument("--device", help="cpu, cuda, ... (default: a GPU when there is one)")


def add_statistics_options(statistics: argparse.ArgumentParser) -> None:
    """All of them."""
    statistics.add_argument("source", help=f"images: an .npz of them, or {_SOURCE}")
    statistics.add_argument(
        "--kind", required=True, choices=KINDS, help="what the models to score have seen of these images"
    )
    _add_features(statistics)
    statistics.add_argument(
        "--size", type=int, nargs="+", metavar="PIXELS",
        help="side, or height and width, to resize and crop to (default: the images have one size)",
    )  # fmt: skip
    statistics.add_argument("--out", required=True, help="new .npz file")
    statistics.add_argument("--device", help="cpu, cuda, ... (default: a GPU when there is one)")


def _add_reference(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument(
        "--reference", help=f"images ({_SOURCE}, or .npz) or their statistics (.npz) to score against"
    )
    evaluate.add_argument(
        "--reference-kind", choices=KINDS, help="what the model has seen of them, where no file says so"
    )
    evaluate.add_argument(
        "--any-reference", action="store_true",
        help="allow samples against validation images, reconstructions against training images",
    )  # fmt: skip


def _add_features(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--features", choices=FEATURES,
        help="network that compares (default: that of the statistics; cifar, the bundled one, for 32 pixels)",
    )  # fmt: skip
    command.add_argument(
        "--weights",
        metavar="FILE",
        help="of inception or dinov2: a file, or hub:OWNER/NAME/FILE; of classifier its folder",
    )


def add_likelihood_options(likelihood: argparse.ArgumentParser) -> None:
    """What ``nextscale likelihood`` can be told."""
    likelihood.add_argument("model", help="bundled model or model folder")
    likelihood.add_argument("--data", required=True, help="labelled images (a source as for data check)")
    likelihood.add_argument("--limit", type=int, help="images at most, spread over --data (default: all)")
    likelihood.add_argument(
        "--classify", action="store_true", help="try every class: which explains an image best?"
    )
    likelihood.add_argument("--batch", type=int, default=50, help="passes at a time (default: 50)")
    likelihood.add_argument("--device", help="cpu, cuda, ... (default: a GPU when there is one)")


def add_neighbours_options(neighbours: argparse.ArgumentParser) -> None:
    """What ``nextscale neighbours`` can be told, besides settings of sampling."""
    neighbours.add_argument("images", metavar="MODEL_OR_IMAGES", help="a model, or a source of images")
    neighbours.add_argument(
        "--training", required=True, help="the training images (a source as for data check)"
    )
    neighbours.add_argument(
        "--num-samples", type=int, default=200, help="samples, or images at most (default: 200)"
    )
    neighbours.add_argument("--limit", type=int, help="training images at most (default: all)")
    neighbours.add_argument(
        "--neighbours", type=int, default=8, help="training images beside each sample (default: 8)"
    )
    neighbours.add_argument("--shown", type=int, default=20, help="samples on the picture (default: 20)")
    neighbours.add_argument(
        "--features", default="cifar",
        help=f"network that compares them: {', '.join(FEATURES)} (default: cifar, the bundled one)",
    )  # fmt: skip
    neighbours.add_argument(
        "--weights", help="of the network: a file, or hub:OWNER/NAME/FILE; of classifier its folder"
    )
    neighbours.add_argument("--size", type=int, help="side of the crops of images in pixels")
    neighbours.add_argument(
        "--seed", type=int, default=0, help="seed of the first sample; the others count on"
    )
    neighbours.add_argument("--out", default="neighbours", help="new folder to write (default: neighbours)")
    neighbours.add_argument("--device", help="cpu, cuda, ... (default: a GPU when there is one)")
