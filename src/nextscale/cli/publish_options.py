"""The options of ``nextscale publish``."""

from __future__ import annotations

import argparse


def add_publish_options(publish: argparse.ArgumentParser) -> None:
    """All of them."""
    publish.add_argument("model", help="bundled model, model folder or hub:OWNER/NAME")
    publish.add_argument("--out", help="new model folder to write")
    publish.add_argument("--to", metavar="OWNER/NAME", help="repository of the Hugging Face hub to push to")
    publish.add_argument("--private", action="store_true", help="a new repository can be seen by you alone")
    publish.add_argument("--scores", help="the scores.json of nextscale evaluate --out, for the card")
    publish.add_argument("--name", help="of the model, in the card")
    publish.add_argument("--license", help="in the card, as the hub writes it, such as apache-2.0")
