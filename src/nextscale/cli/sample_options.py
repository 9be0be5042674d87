"""The options of ``nextscale sample``, and those of all commands that sample."""

from __future__ import annotations

import argparse


def add_sample_options(sample: argparse.ArgumentParser) -> None:
    """What to draw, how, and what to write."""
    sample.add_argument("model", help="bundled model or model folder")
    sample.add_argument(
        "--labels", nargs="+", default=["all"], help="class numbers or names, 'none', or 'all' (default)"
    )
    sample.add_argument("--per-label", type=int, default=1, help="images of each label (default: 1)")
    sample.add_argument(
        "--seed", type=int, default=0, help="seed of the first image; the others count on (default: 0)"
    )
    sample.add_argument("--seeds", type=int, nargs="+", help="one seed per image instead")
    add_sampling_options(sample)
    sample.add_argument(
        "--smooth", action="store_true", help="mix codes instead of drawing one (pictures only)"
    )
    sample.add_argument(
        "--keep-best", type=float, metavar="SHARE",
        help="rejection sampling: draw 1 / SHARE candidates per image, keep the one that the bundled "
        "classifier is surest of; needs its classes",
    )  # fmt: skip
    sample.add_argument("--batch", type=int, default=50, help="images at a time (default: 50)")
    sample.add_argument("--png", action="store_true", help="write every image as a PNG too")
    sample.add_argument("--npz", action="store_true", help="write samples.npz too, as an .npz for --out")
    sample.add_argument(
        "--out",
        default="samples",
        help="new folder to write (default: samples), or an .npz of all images (arr_0: uint8 N, H, W, 3)",
    )
    sample.add_argument(
        "--format", choices=["parquet", "webdataset"],
        help="write shards of images, labels and seeds into --out instead; torchrun shares the work, run "
        "again to go on",
    )  # fmt: skip
    sample.add_argument("--shard-size", type=int, help="of --format: images per file (default: 1000)")
    sample.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16"], default="auto",
        help="of the weights: float32 draws the same tokens everywhere; auto (default) is bfloat16 where the "
        "hardware is faster with it",
    )  # fmt: skip
    sample.add_argument("--device", help="cpu, cuda, ... (default: a GPU when there is one)")


def add_sampling_options(command: argparse.ArgumentParser) -> None:
    """Sampling settings; what is not given is the model's own."""
    command.add_argument(
        "--guidance", type=float, help="classifier-free guidance at the last scale, 0 is off"
    )
    command.add_argument("--top-k", type=int, help="draw among the k likeliest codes; 0 is off, 1 is greedy")
    command.add_argument(
        "--top-p", type=float, help="draw among the likeliest codes with this probability; 1 is off"
    )
    command.add_argument("--temperature", type=float, help="divides the logits")
    command.add_argument(
        "--num-unguided-scales", type=int, help="last scales without guidance, at half the work; 0 is none"
    )
    command.add_argument(
        "--ssg", type=float, help="scaled spatial guidance, away from the coarser scale's logits; 0 is off"
    )
    command.add_argument("--sampler", choices=["ddim", "ddpm"], help="of diffusion: how noise is taken away")
    command.add_argument("--num-steps", type=int, help="of diffusion: how many times")
