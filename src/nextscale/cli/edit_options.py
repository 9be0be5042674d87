"""Options of ``nextscale edit``."""

from __future__ import annotations

import argparse


def add_edit_options(edit: argparse.ArgumentParser) -> None:
    """The image, what of it stays, and what becomes of the rest."""
    edit.add_argument("model", help="bundled model or model folder, of kind next_scale")
    edit.add_argument("image", help="image file; brought to the model's size, but by outpaint and upscale")
    edit.add_argument(
        "--task", default="inpaint", choices=["inpaint", "outpaint", "replace", "variation", "upscale"],
        help="inpaint (default) fills a hole from around it; replace puts something of --label there and may "
        "look at what was; outpaint makes surroundings; variation keeps coarse scales alone; upscale "
        "makes a small image large",
    )  # fmt: skip
    edit.add_argument(
        "--mask", help="picture of the image's size: white (or transparent) is generated anew, black stays"
    )
    edit.add_argument(
        "--box", metavar="y0,x0,y1,x1", help="instead: fractions of the image; what is inside is made anew"
    )
    edit.add_argument(
        "--label", default="none", help="class number or name of the result; 'none' (default) is no class"
    )
    edit.add_argument("--seed", type=int, default=0, help="another seed, another result (default: 0)")
    edit.add_argument(
        "--candidates", type=int, default=1, help="results to draw, of which the best is kept (default: 1)"
    )
    edit.add_argument(
        "--best-by", choices=["likelihood", "classifier"],
        help="which is best: the likeliest tokens (default), or what the bundled classifier is surest to be "
        "of --label",
    )  # fmt: skip
    edit.add_argument(
        "--from-scale", type=int, metavar="K",
        help="keep the first K scales whole (default: by the task; variation: half of them)",
    )  # fmt: skip
    edit.add_argument(
        "--hole", choices=["hidden", "seen"],
        help="whether the encoder looks at what was in the hole (default: hidden by inpaint alone)",
    )  # fmt: skip
    edit.add_argument(
        "--no-paste", action="store_true",
        help="leave kept areas as the tokenizer shows them; by default their pixels are put back, to the bit "
        "(upscale: the result is made to shrink to the small image)",
    )  # fmt: skip
    edit.add_argument(
        "--feather", type=int, help="pixels over which the seam fades into the hole (default: half a cell)"
    )
    edit.add_argument(
        "--share", type=float, help="outpaint: share of the sides that the image takes (default: 0.5)"
    )
    edit.add_argument(
        "--place", metavar="y,x", help="outpaint: where it stands, 0,0 top left, 1,1 bottom right (0.5,0.5)"
    )
    edit.add_argument("--out", default="edited", help="new folder to write (default: edited)")
    edit.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16"], default="auto",
        help="of the weights; auto (default) is bfloat16 where the hardware is faster with it",
    )  # fmt: skip
    edit.add_argument("--device", help="cpu, cuda, ... (default: a GPU when there is one)")


def add_reproduce_options(reproduce: argparse.ArgumentParser) -> None:
    """The picture, the model, and what an edit was given."""
    reproduce.add_argument("picture", help="PNG file by nextscale sample --png, edit, or bulk sampling")
    reproduce.add_argument("--model", required=True, help="the model that made it")
    reproduce.add_argument("--image", help="of an edit: the image that was edited")
    reproduce.add_argument("--mask", help="of an edit: its mask, where a file was given")
    reproduce.add_argument(
        "--alone", action="store_true",
        help="make it alone; by default with as many copies as images were made together, which rounds alike",
    )  # fmt: skip
    reproduce.add_argument("--out", help="PNG file to write the picture to that was made now")
    reproduce.add_argument("--device", help="cpu, cuda, ... (default: a GPU when there is one)")
    reproduce.epilog = (
        "The exit code is 0 when all pixels are the same, 1 when some differ or the model is another, 2 for "
        "files that cannot be used."
    )
