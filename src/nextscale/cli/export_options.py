"""The options of ``nextscale export``."""

from __future__ import annotations

import argparse


def add_export_options(export: argparse.ArgumentParser) -> None:
    """All of them."""
    export.add_argument("model", help="bundled model or model folder")
    export.add_argument(
        "--to", required=True, choices=["aoti", "onnx", "torch-export"],
        help="native code for this kind of machine, ONNX, or torch's own format",
    )  # fmt: skip
    export.add_argument("--batch", type=int, default=1, help="images at a time (default: 1)")
    export.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of weights (default: float32)"
    )
    export.add_argument("--out", required=True, help="new folder to write")
