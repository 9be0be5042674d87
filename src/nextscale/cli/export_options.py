"""The options of ``nextscale export``."""

from __future__ import annotations

import argparse


def add_export_options(export: argparse.ArgumentParser) -> None:
    """All of them."""
    export.add_argument("model", help="bundled model or model folder")
    export.add_argument(
        "--to", required=True, choices=["aoti", "diffusers", "onnx", "torch-export"],
        help="native code for this kind of machine, a pipeline for diffusers (which calls nextscale), "
        "ONNX, or torch's own format",
    )  # fmt: skip
    export.add_argument("--batch", type=int, help="images at a time (default: 1)")
    export.add_argument("--dtype", choices=["float32", "bfloat16"], help="of weights (default: float32)")
    export.add_argument("--out", required=True, help="new folder to write")
