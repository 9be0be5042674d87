"""Options of ``nextscale tokenize``."""

from __future__ import annotations

import argparse


def add_tokenize_options(tokenize: argparse.ArgumentParser) -> None:
    """Add them to the command."""
    tokenize.add_argument("source", help="images: a folder, or a .parquet file")
    tokenize.add_argument("--model", required=True, help="bundled model or model folder with the tokenizer")
    tokenize.add_argument("--out", required=True, help="folder of the tokens")
    tokenize.add_argument(
        "--views", type=int, required=True, help="crops of every image: those of the first epochs"
    )
    tokenize.add_argument("--flip", action="store_true", help="mirror half of them")
    tokenize.add_argument(
        "--enlarge", type=float, help="short side after resizing / crop side; 1 takes the center crop"
    )
    tokenize.add_argument("--seed", type=int, help="loop.seed of the trainings to come (default: 0)")
    tokenize.add_argument(
        "--validation-share", type=float, help="share of each class to leave out (default: none)"
    )
    tokenize.add_argument("--batch", type=int, default=100, help="images at a time (default: 100)")
    tokenize.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32",
        help="of the encoder (default: float32); encode_precision of the trainings to come",
    )  # fmt: skip
    tokenize.add_argument("--workers", type=int, help="processes that decode images (default: none)")
    tokenize.add_argument("--device", help="cpu, cuda, ... (default: a GPU when there is one)")
    tokenize.add_argument("--quiet", action="store_true", help="no progress bar")
