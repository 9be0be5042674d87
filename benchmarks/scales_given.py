"""Which scales a prior is bad at: its first scales are those of real images, the rest it draws.

    nextscale statistics cifar10/train.parquet --kind training --features cifar --out stats.npz
    python benchmarks/scales_given.py MODEL cifar10/test.parquet --reference stats.npz --guidance 5

Row k: the tokens of the first k scales come from an image of the wanted class, so what is wrong with the
result is the prior's doing from scale k on; the last row is the tokenizer's alone. Frechet distances depend
on the number of images, which is the same for all rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy
import torch
from tqdm import tqdm

from nextscale.data.loader import evaluation_batches
from nextscale.data.sources import open_source
from nextscale.distributed import choose_device
from nextscale.evaluate.frechet import frechet_distance
from nextscale.evaluate.scores import moments_of
from nextscale.evaluate.statistics import read_statistics
from nextscale.features.extractor import load_extractor
from nextscale.generate.generator import Generator
from nextscale.pixels import to_model, to_uint8

_BATCH = 250


def _drawn(
    generator: Generator,
    images: numpy.ndarray,
    labels: numpy.ndarray,
    given: int,
    sampling: Any,
    *,
    first: int,
) -> numpy.ndarray:
    """Images uint8 (B, H, W, 3) whose first scales are those of others."""
    wanted, seeds = labels.tolist(), range(first, first + len(labels))
    originals = to_model(images).to(generator.prior.position.device)
    if given == 0:
        return generator(wanted, seeds=seeds, **sampling).images
    if given == generator.settings.schedule.num_scales:
        return to_uint8(generator.tokenizer.decode(generator.tokenizer.encode(originals)))
    return generator.edit(
        originals, labels=wanted, seeds=seeds, task="variation", from_scale=given, **sampling
    ).images


@torch.no_grad()
def main() -> None:
    """Draw and print the table as Markdown."""
    parser = argparse.ArgumentParser(description="Which scales a prior is bad at.")
    parser.add_argument("model")
    parser.add_argument("source", help="images of the classes of the bundled classifier")
    parser.add_argument("--reference", required=True, help="statistics of the training images")
    parser.add_argument("--guidance", type=float, nargs="+", default=[5.0])
    parser.add_argument(
        "--given", type=int, nargs="+", help="numbers of scales that are given (default: all)"
    )
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    device = choose_device(None)
    generator = Generator.load(options.model, device=device, dtype=options.dtype)
    reference = read_statistics(Path(options.reference), kind="training")
    extractor = load_extractor("cifar", device=device)
    source, size = open_source(options.source), generator.tokenizer.image_size
    num_scales = generator.settings.schedule.num_scales
    print("| scales given | guidance | FD-CIFAR | class agreement |\n|---|---|---|---|")
    for given in options.given or range(num_scales + 1):
        for guidance in options.guidance if given < num_scales else [0.0]:
            features, right, count = [], 0, 0
            sampling = {"guidance": guidance, "temperature": options.temperature}
            batches = evaluation_batches(source, size=size, batch_size=_BATCH, limit=options.limit)
            for images, labels in tqdm(batches, total=-(-options.limit // _BATCH), disable=None, leave=False):
                seen = extractor(_drawn(generator, images, labels, given, sampling, first=count))
                features.append(seen["pool"].double().cpu())
                right += int((seen["logits"].argmax(dim=1).cpu().numpy() == labels).sum())
                count += len(labels)
            distance = frechet_distance(moments_of(torch.cat(features).numpy()), reference.moments)
            print(f"| {given} | {guidance:g} | {distance:.1f} | {right / count:.1%} |", flush=True)


if __name__ == "__main__":
    main()
