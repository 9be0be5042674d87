"""The default path, as a user gets it, for the benchmarks: sampling with a `Generator`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from nextscale.generate.folder import Prior
from nextscale.generate.generator import Generator
from nextscale.generate.precision import Dtype, stored_dtype
from nextscale.generate.result import Result
from nextscale.generate.settings import ModelSettings
from nextscale.tokenizer.model import Tokenizer


class Default:
    """A generator in one dtype."""

    def __init__(self, generator: Generator, *, weight_bytes: int) -> None:
        self.generator, self.weight_bytes = generator, weight_bytes

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return self.generator.prior.position.device

    def __call__(self, batch: int) -> Result:
        """Make images of the first classes, with the model's own sampling settings."""
        names = self.generator.class_names
        return self.generator([number % len(names) for number in range(batch)], seeds=range(batch))

    def rows(self, batch: int, count: int) -> None:
        """The first rows of a next-token model's images, without decoder."""
        names = self.generator.class_names
        labels = [number % len(names) for number in range(batch)]
        with torch.no_grad():
            steps = self.generator.steps(self.generator.request(labels, range(batch), False, {}))
            for _ in range(count):
                next(steps)

    @torch.no_grad()
    def decode(self, map_BChw: Tensor) -> Tensor:
        """The decoder alone."""
        return self.generator.tokenizer.decode_features(map_BChw)

    @torch.no_grad()
    def quantise(self, tokens_BL: Tensor) -> None:
        """What sampling asks the quantiser: the map after each scale, and the next scale's view of it."""
        quantizer = self.generator.tokenizer.quantizer
        for scale, map_BChw in enumerate(quantizer.maps(tokens_BL), start=1):
            if scale < quantizer.schedule.num_scales:
                quantizer.resize_to(scale, map_BChw)


def make_default(model: ModelSettings, tokenizer: Tokenizer, prior: Prior, *, dtype: str) -> Default:
    """The default path on copies of these weights."""
    weight_bytes = sum(
        item.numel() * stored_dtype(name, getattr(torch, dtype)).itemsize
        for module in (tokenizer, prior)
        for name, item in module.named_parameters()
    )
    generator = Generator(model, copy.deepcopy(tokenizer), copy.deepcopy(prior), dtype=cast(Dtype, dtype))
    return Default(_as_auto(generator), weight_bytes=weight_bytes)


def _as_auto(generator: Generator) -> Generator:
    """As dtype "auto" lays out CPUs without bfloat16: that is float32's default there."""
    return generator.lay_out() if generator.prior.position.device.type == "cpu" else generator


def use_cuda_graphs(default: Default, *, batch: int) -> None:
    """Let it replay passes from now on. Raises ValueError unless its tokens stay as they are, when recording
    and when replaying.
    """
    expected = default(batch).tokens_BL
    assert expected is not None
    default.generator.use_cuda_graphs()
    for _ in range(2):
        given = default(batch).tokens_BL
        if given is None or not torch.equal(given, expected):
            raise ValueError(
                "CUDA graphs give other tokens than the same passes without them: do not use them"
            )


def generate_once(folder: Path, *, batch: int, dtype: str) -> None:
    """Load a model folder and make some images of the first classes, on the CPU."""
    generator = Generator.load(folder, dtype=cast(Dtype, dtype))
    Default(_as_auto(generator), weight_bytes=0)(batch)
