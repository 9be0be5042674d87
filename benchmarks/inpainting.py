"""What in-painting is worth: a hole filled by the model against cheap fillings, on images that are known.

    python benchmarks/inpainting.py cifar10-tiny cifar10/test.parquet --limit 1000

For each hole and way of filling it: the distance between result and original inside the hole, as the bundled
classifier's features see it (the layout of LPIPS, without its heads), and how often the classifier names the
original's class. Kept pixels are put back by every way but the tokenizer's, which has no hole to fill and
shows what the model could reach at best. Intervals are 95 %: of a mean by its standard error, of a share by
Wilson's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy
import torch
from torch import Tensor

from nextscale.data.loader import evaluation_batches
from nextscale.data.sources import open_source
from nextscale.distributed import choose_device
from nextscale.evaluate.likelihood import image_bits, wilson_interval
from nextscale.features.classifier import load_classifier
from nextscale.features.perceptual import PerceptualDistance
from nextscale.generate.compositing import fill_hole, paste
from nextscale.generate.editing import box_mask
from nextscale.generate.generator import Generator
from nextscale.pixels import to_model
from nextscale.rng import candidate_seed

HOLES = {"center box": (0.25, 0.25, 0.75, 0.75), "right half": (0.0, 0.5, 1.0, 1.0)}
#: Images (B, 3, H, W), labels (B,), the number of the first one, what is kept (1, H, W) -> results.
Way = Callable[[Tensor, Tensor, int, Tensor], Tensor]


def ways(generator: Generator, *, candidates: int) -> Iterator[tuple[str, Way]]:
    """Name and function of each way to fill a hole."""

    def edited(task: str, *, labelled: bool) -> Way:
        def fill(images_BCHW: Tensor, labels_B: Tensor, first: int, keep: Tensor) -> Tensor:
            labels = labels_B.tolist() if labelled else [None] * len(labels_B)
            seeds = range(first, first + len(labels_B))
            edit = generator.edit(images_BCHW, mask=keep, labels=labels, seeds=seeds, task=task)
            return edit.images_BCHW

        return fill

    def likeliest(images_BCHW: Tensor, labels_B: Tensor, first: int, keep: Tensor) -> Tensor:
        results, bits = [], []
        for number in range(candidates):
            seeds = [candidate_seed(first + row, number) for row in range(len(labels_B))]
            edit = generator.edit(images_BCHW, mask=keep, labels=labels_B.tolist(), seeds=seeds)
            assert edit.tokens_BL is not None
            results.append(edit.images_BCHW)
            bits.append(image_bits(generator.tokenizer, generator.prior, labels_B, edit.tokens_BL))
        best_B = torch.stack(bits).argmin(dim=0)
        return torch.stack(results)[best_B, torch.arange(len(best_B))]

    def sampled(images_BCHW: Tensor, labels_B: Tensor, first: int, keep: Tensor) -> Tensor:
        sample = generator(labels_B.tolist(), seeds=range(first, first + len(labels_B)))
        return paste(sample.images_BCHW, images_BCHW, keep, feather=0)

    def mean_colour(images_BCHW: Tensor, labels_B: Tensor, first: int, keep: Tensor) -> Tensor:
        mean = (images_BCHW * keep).sum(dim=(2, 3), keepdim=True) / keep.sum()
        return paste(mean.expand_as(images_BCHW), images_BCHW, keep, feather=0)

    def tokenizer(images_BCHW: Tensor, labels_B: Tensor, first: int, keep: Tensor) -> Tensor:
        return generator.tokenizer.decode(generator.tokenizer.encode(images_BCHW))

    yield "original", lambda images_BCHW, *_: images_BCHW
    yield "the tokenizer's own, no hole", tokenizer
    yield "mean colour of what is kept", mean_colour
    yield "colours carried in from the border", lambda images, _, __, keep: fill_hole(images, keep)
    yield "another sample of the label", sampled
    yield "in-painting, no label", edited("inpaint", labelled=False)
    yield "in-painting, label", edited("inpaint", labelled=True)
    yield f"in-painting, label, likeliest of {candidates}", likeliest
    yield "replace, label (the encoder saw the hole)", edited("replace", labelled=True)


@torch.no_grad()
def main() -> None:
    """Fill all holes in all ways and print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "model", help="bundled model or model folder with the classes of the bundled classifier"
    )
    parser.add_argument("source", help="images that it has not seen: folder or .parquet")
    parser.add_argument("--limit", type=int, default=1000, help="images, spread over the source")
    parser.add_argument("--candidates", type=int, default=4, help="of which the likeliest is taken")
    parser.add_argument("--batch", type=int, default=50, help="images at a time")
    parser.add_argument("--dtype", default="auto", help="of the weights: auto, float32 or bfloat16")
    parser.add_argument("--device", help="cpu, cuda, ...")
    options = parser.parse_args()
    device = choose_device(options.device)
    generator = Generator.load(options.model, device=device, dtype=options.dtype)
    classifier = load_classifier().to(device)
    distance = PerceptualDistance(classifier)
    size = generator.tokenizer.image_size
    batches = list(
        evaluation_batches(
            open_source(options.source), size=size, batch_size=options.batch, limit=options.limit
        )
    )
    for hole, box in HOLES.items():
        keep = torch.from_numpy(box_mask(box, size))[None].to(device)
        rows, columns = (
            slice(int(part.min()), int(part.max()) + 1) for part in numpy.nonzero(keep[0].cpu().numpy() == 0)
        )
        print(f"\n| {hole} | distance inside (95 %) | class agreement (95 %) |\n|---|---|---|", flush=True)
        for name, way in ways(generator, candidates=options.candidates):
            inside, right, first = [], 0, 0
            for pixels, labels in batches:
                images_BCHW, labels_B = to_model(pixels).to(device), torch.from_numpy(labels).to(device)
                result = way(images_BCHW, labels_B, first, keep)
                first += len(labels)
                inside.append(distance(result[..., rows, columns], images_BCHW[..., rows, columns]).cpu())
                right += int((classifier.assign(result) == labels_B).sum())
            print(_line(name, torch.cat(inside), right), flush=True)


def _line(name: str, inside_N: Tensor, right: int) -> str:
    count, mean = len(inside_N), float(inside_N.mean())
    half = 1.96 * float(inside_N.std()) / count**0.5
    low, high = wilson_interval(right, count)
    return (
        f"| {name} | {mean:.3f} ({mean - half:.3f} to {mean + half:.3f}) | {right / count:.1%} "
        f"({low:.1%} to {high:.1%}) |"
    )


if __name__ == "__main__":
    main()
