"""``nextscale demo``: a page of pictures from a model, with the settings and the times behind them."""

from __future__ import annotations

import argparse
import html
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy
from PIL import Image

from nextscale import __version__, checkpoint
from nextscale.cli.output import check_new_folder
from nextscale.data.transforms import decode_image, resize_and_crop
from nextscale.distributed import choose_device
from nextscale.generate.generator import Generator
from nextscale.pixels import enlarge, grid, side_by_side, to_model, to_uint8

_PER_CLASS, _CLASSES = 8, 10

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>nextscale: {model}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
img {{ max-width: 100%; image-rendering: pixelated }} h2 {{ margin-top: 2.5rem }}
.classes {{ display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; align-items: center }}
.classes img {{ display: block }} table {{ border-collapse: collapse }} td {{ padding: .1rem 1.5rem .1rem 0 }}
pre {{ background: #f4f4f4; padding: 1rem; overflow-x: auto }}
</style></head><body>
<h1>nextscale: {model}</h1>
<p>Every sample was made just now, on this machine, and none was chosen: seeds count up from 0.</p>
<h2>A row per class</h2><div class="classes">{rows}</div>
<h2>Coarse to fine</h2>
<p>One image after each of its {num_scales} scales ({scales} cells): <b>{strip_label}</b>.</p>
<img src="strip.png" alt="The same image after each scale, coarse to fine">
{reconstructions}
<h2>Times</h2><table>{times}</table>
<h2>Settings</h2><pre>{settings}</pre>
</body></html>
"""

_RECONSTRUCTIONS = """<h2>What the tokenizer keeps</h2>
<p>Photographs that come with nextscale (left of each pair) and what {num_tokens} tokens hold of them (right).
<code>nextscale reconstruct</code> does this with your own images.</p>
<img src="reconstructions.png" alt="Images beside their reconstructions">"""


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Write the demo folder."""
    out = Path(options.out)
    check_new_folder(out, mark="demo.json")
    device = choose_device(options.device)
    started = time.perf_counter()
    generator = Generator.load(options.model, device=device)
    loaded = time.perf_counter()
    classes = list(range(min(_CLASSES, len(generator.class_names))))
    labels = [label for label in classes for _ in range(_PER_CLASS)]
    images = generator(labels, seeds=range(len(labels))).images
    sampled = time.perf_counter()
    strip = numpy.stack([step.images[0] for step in generator.stream([classes[-1]], seeds=[0])])
    real = _photographs(generator.tokenizer.image_size)
    decoded = to_uint8(generator.tokenizer.decode(generator.tokenizer.encode(to_model(real).to(device))))
    rate = len(images) / (sampled - loaded)
    times = {
        "load the model": f"{loaded - started:.2f} s",
        f"make {len(images)} images": f"{sampled - loaded:.2f} s",
        "images per second": f"{rate:.1f}",
        "device": str(device),
    }
    with checkpoint.new_folder(out) as place:
        factor = max(1, 64 // images.shape[1])
        for row, label in enumerate(classes):
            sheet = grid(enlarge(images[row * _PER_CLASS :][:_PER_CLASS], factor), columns=_PER_CLASS)
            Image.fromarray(sheet).save(place / f"class-{label}.png")
        Image.fromarray(grid(enlarge(images, factor), columns=_PER_CLASS)).save(place / "grid.png")
        Image.fromarray(grid(enlarge(strip, 2 * factor), columns=len(strip))).save(place / "strip.png")
        Image.fromarray(side_by_side(real, decoded)).save(place / "reconstructions.png")
        (place / "index.html").write_text(_page(generator, options.model, classes, times), encoding="utf-8")
        sampling = generator.sampling({})
        checkpoint.write_json(
            place / "demo.json", {"model": options.model, "sampling": sampling, "times": times}
        )
    print(f"{len(images)} images, {rate:.1f} images per second: {out / 'index.html'}")


def _photographs(size: tuple[int, int]) -> numpy.ndarray:
    """The photographs beside this file: uint8 (B, H, W, 3)."""
    files = sorted((Path(__file__).parent / "pictures").glob("*.jpg"))
    return numpy.stack([resize_and_crop(decode_image(file.read_bytes(), file.name), size) for file in files])


def _page(generator: Generator, model: str, classes: Sequence[int], times: dict[str, str]) -> str:
    names, schedule = [html.escape(name) for name in generator.class_names], generator.settings.schedule
    rows = "".join(
        f'<span>{names[c]}</span><img src="class-{c}.png" alt="{names[c]} samples">' for c in classes
    )
    settings = {
        "nextscale": __version__, "seeds": f"0 to {len(classes) * _PER_CLASS - 1}",
        "sampling": generator.sampling({}),
    }  # fmt: skip
    return _PAGE.format(
        model=html.escape(model), rows=rows, num_scales=schedule.num_scales, strip_label=names[classes[-1]],
        scales=", ".join(f"{h}x{w}" for h, w in schedule.sizes),
        reconstructions=_RECONSTRUCTIONS.format(num_tokens=schedule.num_tokens),
        times="".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in times.items()),
        settings=html.escape(json.dumps(settings, indent=2)),
    )  # fmt: skip
