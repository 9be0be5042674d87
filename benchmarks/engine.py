"""What the engine of `nextscale serve` costs beside a bare `Generator`, and whether company changes images.

    python benchmarks/engine.py cifar10-tiny --images 1 8 32

In turn, since the machine changes: the generator alone at one size of batch; the engine, with so many orders
of one image waiting that they fill such batches; the same with previews wanted by all. Figures are medians of
the ratio to the generator in the same round. Then the images of one full batch are compared with each
of these made alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch

from nextscale import Generator
from nextscale.serve.engine import Engine
from nextscale.serve.order import ALL, Order
from nextscale.serve.settings import EngineSettings

GUIDANCE = (0.0, 1.5, 3.0, 5.0)


def wanted(generator: Generator, count: int, first: int) -> list[dict[str, Any]]:
    """Label, seed and guidance of so many images, all different."""
    classes = len(generator.class_names)
    return [
        {"label": seed % classes, "seed": seed, "guidance": GUIDANCE[seed % len(GUIDANCE)]}
        for seed in range(first, first + count)
    ]


def alone(generator: Generator, images: list[dict[str, Any]]) -> tuple[Any, torch.Tensor]:
    """Pixels and tokens of a batch."""
    result = generator(
        [image["label"] for image in images], seeds=[image["seed"] for image in images],
        guidance=[image["guidance"] for image in images],
    )  # fmt: skip
    assert result.tokens_BL is not None
    return result.images, result.tokens_BL


def direct_rate(generator: Generator, size: int, batches: int) -> float:
    """Images per second of the generator."""
    start = time.perf_counter()
    for batch in range(batches):
        alone(generator, wanted(generator, size, batch * size))
    return size * batches / (time.perf_counter() - start)


def engine_rate(generator: Generator, size: int, batches: int, *, previews: int) -> float:
    """Images per second of an engine that finds its batches waiting."""
    count = size * batches
    engine = Engine(generator, EngineSettings(max_batch=size, max_queue=count, deadline_s=3600))
    orders = [
        Order((image["label"],), (image["seed"],), {"guidance": image["guidance"]}, previews=previews)
        for image in wanted(generator, count, 0)
    ]
    engine.start()
    start = time.perf_counter()
    for waiting in [engine.submit(order) for order in orders]:
        waiting.result()
    seconds = time.perf_counter() - start
    engine.drain(60)
    return count / seconds


def measure(generator: Generator, size: int, *, batches: int, rounds: int) -> dict[str, float]:
    """Medians at one size of batch."""
    direct_rate(generator, size, 1)
    direct, engine, previews = [], [], []
    for _ in range(rounds):
        direct.append(direct_rate(generator, size, batches))
        engine.append(engine_rate(generator, size, batches, previews=0))
        previews.append(engine_rate(generator, size, batches, previews=ALL))
    return {
        "batch": size,
        "direct": statistics.median(direct),
        "engine": statistics.median(a / b for a, b in zip(engine, direct, strict=True)),
        "previews": statistics.median(a / b for a, b in zip(previews, direct, strict=True)),
    }


def company(generator: Generator, size: int) -> dict[str, float]:
    """How the images of one batch differ from the same ones made alone."""
    images = wanted(generator, size, 0)
    pixels, tokens_BL = alone(generator, images)
    same_pixels, same_tokens, same_images, largest = [], [], 0, 0
    for row, image in enumerate(images):
        own_pixels, own_tokens = alone(generator, [image])
        gap = abs(own_pixels[0].astype(int) - pixels[row].astype(int))
        same_pixels.append(float((gap == 0).mean()))
        same_tokens.append(float((own_tokens[0] == tokens_BL[row]).double().mean()))
        same_images += int(not gap.any())
        largest = max(largest, int(gap.max()))
    return {
        "images": size, "same_images": same_images / size, "same_tokens": statistics.mean(same_tokens),
        "same_pixels": statistics.mean(same_pixels), "largest_gap": largest,
    }  # fmt: skip


def main() -> None:
    """Print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="cifar10-tiny")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8, 32], help="sizes of batches")
    parser.add_argument("--batches", type=int, default=3, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    generator = Generator.load(options.model, dtype=options.dtype, device=options.device)
    rows = [
        measure(generator, size, batches=options.batches, rounds=options.rounds) for size in options.images
    ]
    print("| batch | generator, images/s | engine | engine, all want previews |")
    print("|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['batch']} | {row['direct']:.2f} | {row['engine']:.0%} | {row['previews']:.0%} |"
        )  # fmt: skip
    print(
        json.dumps({"dtype": options.dtype, "rows": rows, "company": company(generator, options.images[-1])})
    )


if __name__ == "__main__":
    main()
