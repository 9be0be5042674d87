"""The tables of docs/scale.md: what the ImageNet recipes take, computed from their settings.

    python benchmarks/scale_table.py                  # prints them
    python benchmarks/scale_table.py docs/scale.md    # puts them into the document

Every cell says where its number comes from: c is computed here, r was reported by others.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from nextscale.config import build
from nextscale.prior.next_scale import NextScalePrior
from nextscale.recipes import read_recipe
from nextscale.tokenizer.model import Tokenizer
from nextscale.train import cost, memory
from nextscale.train.settings import PriorRun, TokenizerRun

RECIPES = ("imagenet256-d16", "imagenet256-d20", "imagenet256-d24", "imagenet256-d30", "imagenet512-d36")
NUM_IMAGES, NUM_CLASSES = 1_281_167, 1000
#: Dense operations per second by data sheet: bfloat16, TF32 (torch's default for convolutions of float32) and
#: float32; and the share of them that is assumed to be reached.
PEAKS, H100_TF32, H100_FLOAT32 = {"A100": 312e12, "H100": 989e12}, 494e12, 67e12
UTILISATION = 0.4
#: Of a GPU of 80 GB, what activations and weights may take together.
USABLE = 72e9
#: The original code: A100-hours of the whole training; seconds and GB of a batch of 25 on one H200.
REPORTED_HOURS = {"imagenet256-d16": "960 r (authors), 2112 r (a user)"}
REPORTED_BATCH = {"imagenet256-d16": "0.303 s, 5.8 GB r", "imagenet256-d24": "0.711 s, 12.4 GB r"}


@dataclass(frozen=True)
class Size:
    """A recipe with both of its stages."""

    recipe: str

    @cached_property
    def prior(self) -> PriorRun:
        """The stage of the prior."""
        return build(PriorRun, read_recipe(self.recipe, "prior"), source=self.recipe)

    @cached_property
    def tokenizer(self) -> TokenizerRun:
        """The stage of the tokenizer."""
        return build(TokenizerRun, read_recipe(self.recipe, "tokenizer"), source=self.recipe)

    @cached_property
    def prior_parameters(self) -> int:
        """Counted on a model without values."""
        quantizer = self.tokenizer.tokenizer.quantizer
        with torch.device("meta"):
            module = NextScalePrior(
                self.prior.prior, self.tokenizer.schedule, vocab_size=quantizer.vocab_size,
                code_dim=quantizer.code_dim, num_classes=NUM_CLASSES,
            )  # fmt: skip
        return sum(parameter.numel() for parameter in module.parameters())

    @cached_property
    def tokenizer_parameters(self) -> int:
        """Counted on a model without values."""
        with torch.device("meta"):
            module = Tokenizer(self.tokenizer.tokenizer, self.tokenizer.schedule)
        return sum(parameter.numel() for parameter in module.parameters())

    @property
    def encode_seconds(self) -> float:
        """Of one image on one H100: the tokenizer runs in float32, so its convolutions in TF32."""
        return 2 * cost.encode(self.tokenizer.tokenizer, self.tokenizer.schedule) / (H100_TF32 * UTILISATION)

    def step(self, *, kept_tokens: bool, recompute: bool = False) -> int:
        """Operations per image of training."""
        return 2 * cost.prior_training(
            self.prior.prior, self.tokenizer.schedule, self.tokenizer.tokenizer, recompute=recompute,
            kept_tokens=kept_tokens,
        )  # fmt: skip

    def image_bytes(self, *, recompute: bool) -> int:
        """Activations of one image of training with kept tokens."""
        return memory.prior_activations(
            self.prior.prior, self.tokenizer.schedule, self.tokenizer.tokenizer.quantizer,
            precision="bfloat16", recompute=recompute,
        )  # fmt: skip

    def fixed_bytes(self, num_processes: int, *, recompute: bool) -> int:
        """What one process holds besides activations; more than one of them cut the weights."""
        shards = memory.prior_shards(self.prior.prior, num_processes) if num_processes > 1 else None
        return memory.training_memory(
            num_parameters=self.prior_parameters, activations=0, precision="bfloat16", recompute=recompute,
            frozen=self.tokenizer_parameters, shards=shards,
        ).total  # fmt: skip


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _models(sizes: Sequence[Size]) -> str:
    def row(size: Size) -> list[str]:
        images = size.prior.loop.num_steps * size.prior.loop.batch_size
        forward = cost.prior_pass(
            size.prior.prior, size.tokenizer.schedule, size.tokenizer.tokenizer.quantizer
        )
        return [
            size.recipe, f"{size.prior_parameters / 1e6:,.0f} M c", f"{size.tokenizer.schedule.num_tokens} c",
            f"{forward / 1e9:,.0f} G c", f"{size.step(kept_tokens=True) / 1e12:.2f} c",
            f"{size.step(kept_tokens=False) / 1e12:.2f} c",
            f"{size.step(kept_tokens=True, recompute=True) / 1e12:.2f} c",
            f"{images / 1e6:,.0f} M c", f"{images * size.step(kept_tokens=True):.1e} c",
        ]  # fmt: skip

    head = [
        "recipe",
        "parameters",
        "tokens",
        "multiply-adds, forward",
        "TFLOP per image, training, kept tokens",
    ]
    head += [
        "the same, images encoded at every step",
        "kept tokens, `recompute`",
        "images seen",
        "FLOP in all",
    ]
    return _table(head, map(row, sizes))


def _memory(sizes: Sequence[Size]) -> str:
    def row(size: Size) -> list[str]:
        cells = [size.recipe]
        for recompute in (False, True):
            cells.append(f"{size.image_bytes(recompute=recompute) / 1e6:,.0f} MB c")
        cells += [f"{size.fixed_bytes(count, recompute=True) / 1e9:.1f} GB c" for count in (1, 8, 64)]
        for count, recompute in ((1, False), (1, True), (8, True)):
            room = USABLE - size.fixed_bytes(count, recompute=recompute)
            cells.append(f"{max(0, int(room // size.image_bytes(recompute=recompute)))} c")
        return cells

    head = ["recipe", "per image", "per image, `recompute`", "fixed, per process", "fixed, full sharding, 8"]
    head += ["fixed, full sharding, 64", "images in 80 GB", "with `recompute`", "and sharded over 8"]
    return _table(head, map(row, sizes))


def _time(sizes: Sequence[Size]) -> str:
    def row(size: Size) -> list[str]:
        images = size.prior.loop.num_steps * size.prior.loop.batch_size
        seconds = {name: size.step(kept_tokens=True) / (peak * UTILISATION) for name, peak in PEAKS.items()}
        hours = images * seconds["H100"] / 3600
        return [
            size.recipe, f"{1e3 * seconds['A100']:.1f} ms c", f"{1e3 * seconds['H100']:.1f} ms c",
            f"{1e3 * size.encode_seconds:.1f} ms c",
            f"{images * seconds['A100'] / 3600:,.0f} c", REPORTED_HOURS.get(size.recipe, "not reported"),
            *(f"{hours / count / 24:,.1f} days c" for count in (1, 8, 64)),
        ]  # fmt: skip

    head = ["recipe", "per image, A100", "per image, H100", "encoding it at every step, H100, on top"]
    head += ["A100-hours in all", "A100-hours, original code"]
    return _table([*head, "1 H100", "8 H100", "64 H100"], map(row, sizes))


def _generation(sizes: Sequence[Size]) -> str:
    def row(size: Size) -> list[str]:
        prior, schedule = size.prior.prior, size.tokenizer.schedule
        parts = (prior, schedule, size.tokenizer.tokenizer)
        cache = memory.cache_bytes(prior, schedule, precision="float32")
        guided, decoder = cost.generation(*parts, guided=True), cost.decode(parts[2], schedule)
        seconds = 2 * ((guided - decoder) / H100_FLOAT32 + decoder / H100_TF32) / UTILISATION
        return [
            size.recipe, f"{guided / 1e9:,.0f} G c",
            f"{cost.generation(*parts, guided=False) / 1e9:,.0f} G c",
            f"{decoder / 1e9:,.0f} G c", f"{2 * cache / 1e6:,.0f} MB c",
            f"{4 * (size.prior_parameters + size.tokenizer_parameters) / 1e9:.1f} GB c",
            f"{25 * seconds:.2f} s c",
            REPORTED_BATCH.get(size.recipe, "not reported"),
        ]  # fmt: skip

    head = ["recipe", "multiply-adds per image, guided", "without guidance", "of these the decoder"]
    head += ["keys and values per image, guided, float32", "weights, float32", "batch of 25, H100, float32"]
    return _table([*head, "the original code, one H200, batch of 25"], map(row, sizes))


def _tokenizers(sizes: Sequence[Size]) -> str:
    def row(size: Size) -> list[str]:
        settings, schedule = size.tokenizer.tokenizer, size.tokenizer.schedule
        kept = [
            memory.tokenizer_activations(settings, schedule, precision="bfloat16", recompute=recompute)
            for recompute in (False, True)
        ]
        steps = [
            2 * cost.tokenizer_training(settings, schedule, recompute=recompute)
            for recompute in (False, True)
        ]
        return [
            f"{size.recipe[8:11]} px", f"{size.tokenizer_parameters / 1e6:.0f} M c",
            f"{cost.encode(settings, schedule) / 1e9:,.0f} G c",
            f"{cost.decode(settings, schedule) / 1e9:,.0f} G c",
            *(f"{value / 1e12:.2f} c" for value in steps), *(f"{value / 1e9:.2f} GB c" for value in kept),
        ]  # fmt: skip

    head = ["images", "parameters", "multiply-adds, encode", "decode", "TFLOP per image, training"]
    head += ["with `recompute`", "activations per image", "with `recompute`"]
    return _table(head, map(row, sizes))


def _data(sizes: Sequence[Size]) -> str:
    def row(size: Size) -> list[str]:
        tokens = size.tokenizer.schedule.num_tokens
        rate = PEAKS["H100"] * UTILISATION / size.step(kept_tokens=True)
        return [
            size.recipe, f"{2 * tokens * NUM_IMAGES / 1e9:.2f} GB c",
            f"{NUM_IMAGES * size.encode_seconds / 3600:.1f} h c", f"{rate:,.0f} c",
            f"{8 * rate:,.0f} c", f"{8 * rate * 2 * tokens / 1e6:.1f} MB/s c",
        ]  # fmt: skip

    head = [
        "recipe",
        "kept tokens per view of ImageNet",
        "making a view on one H100",
        "images/s that one H100 eats",
    ]
    return _table([*head, "8 of them", "8 of them, read from kept tokens"], map(row, sizes))


def tables() -> dict[str, str]:
    """Every table of the document by its name."""
    sizes = [Size(recipe) for recipe in RECIPES]
    return {
        "models": _models(sizes), "memory": _memory(sizes), "time": _time(sizes),
        "generation": _generation(sizes), "tokenizers": _tokenizers([sizes[0], sizes[-1]]),
        "data": _data([sizes[0], sizes[2], sizes[3], sizes[4]]),
    }  # fmt: skip


def with_tables(text: str) -> str:
    """A document with new tables; each stands between ``<!-- table NAME -->`` and ``<!-- end -->``."""
    for name, table in tables().items():
        place = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert len(place.findall(text)) == 1, f"the document has no place for the table {name}"
        text = place.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    return text


def main() -> None:
    """Print the tables, or put them into the document that is named."""
    if len(sys.argv) > 1:
        document = Path(sys.argv[1])
        document.write_text(with_tables(document.read_text()))
        return
    for name, table in tables().items():
        print(f"{name}\n\n{table}\n")


if __name__ == "__main__":
    main()
