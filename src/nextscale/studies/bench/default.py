"""The default path, as a user gets it, for the benchmarks: sampling with a `Generator`.

Special here: a generator that takes a dtype is given it; one that does not runs under autocast.
"""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale.generate.folder import Prior
from nextscale.generate.generator import Generator, Result
from nextscale.generate.settings import ModelSettings
from nextscale.tokenizer.model import Tokenizer

_TAKES_DTYPE = "dtype" in inspect.signature(Generator).parameters


class Default:
    """A generator in one dtype."""

    def __init__(self, generator: Generator, *, dtype: str) -> None:
        self.generator, self._dtype = generator, getattr(torch, dtype)

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return self.generator.prior.position.device

    @property
    def weight_bytes(self) -> int:
        """Of its own copy of the weights."""
        modules = (self.generator.tokenizer, self.generator.prior)
        return sum(
            item.numel() * item.element_size() for module in modules for item in module.parameters()
        )  # fmt: skip

    def __call__(self, batch: int) -> Result:
        """Make images of the first classes, with the model's own sampling settings."""
        names = self.generator.class_names
        with self._precision():
            return self.generator([number % len(names) for number in range(batch)], seeds=range(batch))

    def rows(self, batch: int, count: int) -> None:
        """The first rows of a next-token model's images, without decoder."""
        names = self.generator.class_names
        labels = [number % len(names) for number in range(batch)]
        with torch.no_grad(), self._precision():
            steps = self.generator._steps(self.generator._request(labels, range(batch), False, {}))
            for _ in range(count):
                next(steps)

    @torch.no_grad()
    def decode(self, map_BChw: Tensor) -> Tensor:
        """The decoder alone."""
        with self._precision():
            return self.generator.tokenizer.decode_features(map_BChw)

    @torch.no_grad()
    def quantise(self, tokens_BL: Tensor) -> None:
        """What sampling asks the quantiser: the map after each scale, and the next scale's view of it."""
        quantizer = self.generator.tokenizer.quantizer
        with self._precision():
            for scale, map_BChw in enumerate(quantizer.maps(tokens_BL), start=1):
                if scale < quantizer.schedule.num_scales:
                    quantizer.resize_to(scale, map_BChw)

    def _precision(self) -> torch.autocast:
        half = self._dtype != torch.float32 and not _TAKES_DTYPE
        return torch.autocast(self.device.type, dtype=self._dtype, enabled=half)


def make_default(model: ModelSettings, tokenizer: Tokenizer, prior: Prior, *, dtype: str) -> Default:
    """The default path on copies of these weights."""
    given: dict[str, Any] = {"dtype": dtype} if _TAKES_DTYPE else {}
    return Default(Generator(model, copy.deepcopy(tokenizer), copy.deepcopy(prior), **given), dtype=dtype)


def load_default(folder: Path, *, dtype: str) -> Default:
    """The default path on a model folder, on the CPU."""
    given: dict[str, Any] = {"dtype": dtype} if _TAKES_DTYPE else {}
    return Default(Generator.load(folder, **given), dtype=dtype)
