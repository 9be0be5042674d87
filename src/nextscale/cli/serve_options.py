"""The options of ``nextscale serve``."""

from __future__ import annotations

import argparse


def add_serve_options(serve: argparse.ArgumentParser) -> None:
    """All of them."""
    serve.add_argument("model", nargs="?", help="bundled model or model folder")
    serve.add_argument("--name", help="of the model, as clients call it (default: as it was given here)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    serve.add_argument("--device", help="cpu, cuda, ... (default: a GPU when there is one)")
    serve.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16"], default="auto",
        help="of weights; auto: the faster one on this device (default: auto)",
    )  # fmt: skip
    serve.add_argument("--keys", help="file of hashed API keys; without, only this machine may ask")
    serve.add_argument(
        "--new-key", metavar="NAME",
        help="make a key: it is shown once, on standard error; its line for the file goes to standard output",
    )  # fmt: skip
    serve.add_argument("--rate", type=int, default=0, help="requests a minute of one key; 0: any number")
    serve.add_argument(
        "--page", choices=["auto", "yes", "no"], default="auto",
        help="for browsers; auto: where gradio is installed and no keys are asked for (default: auto)",
    )  # fmt: skip
    serve.add_argument("--ray", action="store_true", help="as a Ray Serve deployment of several processes")
    serve.add_argument(
        "--replicas", default="1", help="with --ray: their number, or the fewest and most as 1-4"
    )
    limits = serve.add_argument_group("limits")
    limits.add_argument("--max-batch", type=int, default=32, help="images in one batch (default: 32)")
    limits.add_argument("--max-queue", type=int, default=256, help="images that may wait (default: 256)")
    limits.add_argument("--max-images", type=int, default=8, help="of one request (default: 8)")
    limits.add_argument("--max-body", type=float, default=16.0, help="MiB of one request (default: 16)")
    limits.add_argument(
        "--max-pixels", type=float, default=16.8, help="millions, of an upload (default: 16.8)"
    )
    limits.add_argument("--deadline", type=float, default=60.0, help="seconds for a request (default: 60)")
    limits.add_argument(
        "--grace", type=float, default=30.0, help="seconds to finish when told to stop (default: 30)"
    )
