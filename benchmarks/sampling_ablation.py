"""What each optimisation of sampling in bfloat16 brings alone, on this CPU: all of them, and all but one.

    OMP_NUM_THREADS=1 python benchmarks/sampling_ablation.py [ROUNDS]

One image of a d16 at 256 pixels, random weights. In every round every way is timed once, the next round in
the other order; medians, and the median of each way's quotient with the default of the same round.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from nextscale.cli.bench_sizes import sized_models
from nextscale.generate import precision, sampling
from nextscale.generate.generator import Generator
from nextscale.prior import sampling_block, transformer
from nextscale.prior.layers import attend_to
from nextscale.studies.bench.models import random_prior, random_tokenizer
from nextscale.tokenizer.model import Tokenizer


class Plain(sampling_block.Product):
    """Weights as they are."""

    def __init__(self, *given: Any, gelu: bool = False) -> None:
        super().__init__(*given, gelu=gelu)
        if self.packed:
            self.packed, self._weight = False, given[0].detach()


def in_float32(*given: Any) -> torch.Tensor:
    """Attention as it is where a backward pass may follow."""
    with torch.enable_grad():
        return attend_to(*given)


def as_given(tokenizer: Tokenizer, x: torch.Tensor) -> torch.Tensor:
    """What goes into convolutions, its channels where they are."""
    return x.to(tokenizer.pre_quant.weight.dtype)


def make(changed: str, model: Any, tokenizer: Any, prior: Any) -> Generator:
    """The default, but for one thing that is decided when a generator is made."""
    patches: dict[str, list[Any]] = {
        "float32 weights under autocast": [patch.object(precision, "speed_up_prior")],
        "weights not packed": [patch.object(sampling_block, "Product", Plain)],
        "training's blocks": [patch.object(precision, "SamplingBlock", lambda block: block)],
    }
    dtype: Any = "float32" if changed in ("float32 weights under autocast", "float32") else "bfloat16"
    tokenizer, prior = copy.deepcopy(tokenizer), copy.deepcopy(prior)
    with patched(patches.get(changed, [])):
        generator = Generator(model, tokenizer, prior, dtype=dtype)
    if changed == "decoder's channels first":
        tokenizer.to(memory_format=torch.contiguous_format)
    return generator


@contextmanager
def patched(patches: list[Any]) -> Iterator[None]:
    """All of these at once."""
    for one in patches:
        one.start()
    yield
    for one in patches:
        one.stop()


def seconds(changed: str, generator: Generator) -> float:
    """Of one image, with what is decided when a generator is called."""
    patches: dict[str, list[Any]] = {
        "attention in float32": [patch.object(transformer, "attend_to", in_float32)],
        "codes sorted with their places": [
            patch.object(sampling, "kept_weights", sampling.kept_weights_by_sorting)
        ],
        "decoder's channels first": [patch.object(Tokenizer, "_laid_out", as_given)],
        "drawn at once": [patch.object(sampling, "_AT_ONCE", 2**40)],
    }
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=changed == "float32 weights under autocast")
    with patched(patches.get(changed, [])), autocast:
        start = time.perf_counter()
        generator([1], seeds=[0])
        return time.perf_counter() - start


WAYS = (
    "default", "float32", "float32 weights under autocast", "weights not packed", "training's blocks",
    "attention in float32", "decoder's channels first", "codes sorted with their places", "drawn at once",
)  # fmt: skip


def main(rounds: int) -> None:
    """Print one line per way."""
    cpu, (sized,) = torch.device("cpu"), sized_models(["d16"], [256])
    tokenizer, prior = random_tokenizer(sized.model, cpu), random_prior(sized.model, cpu)
    generators = {way: make(way, sized.model, tokenizer, prior) for way in WAYS}
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for way in WAYS:
        seconds(way, generators[way])
    for number in range(rounds):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            taken[way].append(seconds(way, generators[way]))
    for way in WAYS:
        quotient = statistics.median(a / b for a, b in zip(taken[way], taken["default"], strict=True))
        print(f"{way}: {statistics.median(taken[way]):.2f} s, {quotient:.2f} times the default")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
