"""Options of ``nextscale bench``."""

from __future__ import annotations

import argparse

_ACTIONS = {
    "generate": "Time sampling against the plain path, part by part.",
    "train": "Time training steps of priors from kept tokens against the plain path.",
    "tokenize": "Time making tokens, from files and part by part, against the plain path.",
    "compare": "Time sampling against next-token prediction and DiT-XL/2.",
}
#: Sizes and batches where none are given.
_DEFAULTS = {
    "generate": ("d16", "1"), "train": ("d8", "4"), "tokenize": ("d16", "8"), "compare": ("d16", "1"),
}  # fmt: skip
_SIZES = "tiny, or depths: d8, d12, d16, d20, d24, d30, d36"


def add_bench_options(command: argparse.ArgumentParser) -> None:
    """The four benchmarks, each with its options."""
    actions = command.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=type(command), help="what to time"
    )
    for name, text in _ACTIONS.items():
        sizes, batch = _DEFAULTS[name]
        action = actions.add_parser(
            name, help=text, description=text, allow_abbrev=False,
            epilog="Weights are random. Medians of rounds in which everything is timed in turn, with the "
            "machine's own rates. The last line is JSON.",
        )  # fmt: skip
        action.add_argument("--sizes", default=sizes, help=f"{_SIZES} (default: {sizes})")
        action.add_argument("--batch", default=batch, help=f"images at a time (default: {batch})")
        action.add_argument("--px", help="32 for tiny, else 256 or 512 (default: what the size is known for)")
        action.add_argument(
            "--dtype", default="float32,bfloat16", help="of the products (default: float32,bfloat16)"
        )
        action.add_argument("--rounds", type=int, default=5, help="medians of so many (default: 5)")
        if name == "train":
            action.add_argument("--compile", action="store_true", help="compile the default path's blocks")
        if name == "generate":
            action.add_argument(
                "--cuda-graphs", action="store_true", help="replay the default path's passes (on a GPU)"
            )
        if name == "tokenize":
            action.add_argument("--workers", type=int, default=2, help="processes that decode (default: 2)")
        action.add_argument("--device", help="cpu, cuda, ... (default: a GPU when there is one)")
