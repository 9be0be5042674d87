"""What enlarging with a model is worth: small images made large by it against bicubic ones.

    python benchmarks/enlarging.py cifar10-tiny cifar10/test.parquet --limit 300

Images are halved and enlarged again; distance from the original and class agreement as in inpainting.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.data.loader import evaluation_batches
from nextscale.data.sources import open_source
from nextscale.evaluate.likelihood import wilson_interval
from nextscale.features.classifier import load_classifier
from nextscale.features.perceptual import PerceptualDistance
from nextscale.generate.compositing import agree_with_small
from nextscale.generate.generator import Generator
from nextscale.pixels import to_model

#: Small images, their labels, the number of the first one -> large images.
Way = Callable[[Tensor, list[int], int], Tensor]


def ways(generator: Generator) -> Iterator[tuple[str, Way]]:
    """Name and function of each way to enlarge."""
    size = generator.tokenizer.image_size

    def bicubic(small_BCHW: Tensor, labels: list[int], first: int) -> Tensor:
        return F.interpolate(small_BCHW, size=size, mode="bicubic").clamp(-1, 1)

    def edited(from_scale: int, *, labelled: bool = True, paste: bool = True) -> Way:
        def enlarge(small_BCHW: Tensor, labels: list[int], first: int) -> Tensor:
            count = len(labels)
            return generator.edit(
                small_BCHW, labels=labels if labelled else [None] * count, seeds=range(first, first + count),
                task="upscale", from_scale=from_scale, paste=paste,
            ).images_BCHW  # fmt: skip

        return enlarge

    yield "bicubic", bicubic
    yield "bicubic, made to shrink to the small one", lambda s, *rest: agree_with_small(bicubic(s, *rest), s)
    yield "4 scales kept, label, as generated", edited(4, paste=False)
    for kept in range(2, generator.settings.schedule.num_scales):
        yield f"{kept} scales kept, label, made to shrink", edited(kept)
    yield "4 scales kept, no label, made to shrink", edited(4, labelled=False)


@torch.no_grad()
def main() -> None:
    """Enlarge all images in all ways and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="bundled model or model folder with the bundled classifier's classes")
    parser.add_argument("source", help="images that it has not seen: folder or .parquet")
    parser.add_argument("--limit", type=int, default=300, help="images, spread over the source")
    options = parser.parse_args()
    generator = Generator.load(options.model, dtype="auto")
    classifier = load_classifier()
    distance, size = PerceptualDistance(classifier), generator.tokenizer.image_size
    batches = list(
        evaluation_batches(open_source(options.source), size=size, batch_size=50, limit=options.limit)
    )
    print(
        "| enlarged by | distance (95 %) | PSNR, dB | class agreement (95 %) |\n|---|---|---|---|", flush=True
    )
    for name, way in ways(generator):
        distances, errors, right, first = [], [], 0, 0
        for pixels, labels in batches:
            images_BCHW = to_model(pixels)
            half = (size[0] // 2, size[1] // 2)
            small_BCHW = F.interpolate(images_BCHW, size=half, mode="bicubic", antialias=True).clamp(-1, 1)
            result = way(small_BCHW, labels.tolist(), first)
            first += len(labels)
            distances.append(distance(result, images_BCHW))
            errors.append((result - images_BCHW).square().flatten(1).mean(dim=1) / 4)
            right += int((classifier.assign(result) == torch.from_numpy(labels)).sum())
        far_N, low_high = torch.cat(distances), wilson_interval(right, first)
        half_width = 1.96 * float(far_N.std()) / first**0.5
        ratio = float((-10 * torch.cat(errors).clamp_min(1e-9).log10()).mean())
        print(
            f"| {name} | {far_N.mean():.3f} ± {half_width:.3f} | {ratio:.2f} | {right / first:.1%} "
            f"({low_high[0]:.1%} to {low_high[1]:.1%}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
