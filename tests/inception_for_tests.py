"""Made-up weights for the Inception network: a key, its shape and a seed give its values."""

from __future__ import annotations

import json
import math
import zlib
from functools import cache

import numpy
import torch
from safetensors.torch import load_file
from torch import Tensor

from golden_weights import FOLDER

SEED = 7


@cache
def golden_outputs() -> dict[str, Tensor]:
    return load_file(FOLDER / "inception.io.safetensors")


@cache
def inception_layout() -> dict[str, tuple[int, ...]]:
    content = json.loads((FOLDER / "inception_layout.json").read_text())
    return {key: tuple(shape) for key, shape in content.items()}


@cache
def inception_state() -> dict[str, Tensor]:
    return {key: _value(key, shape) for key, shape in inception_layout().items()}


def _value(key: str, shape: tuple[int, ...]) -> Tensor:
    last = key.rpartition(".")[2]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    generator = numpy.random.default_rng(zlib.crc32(f"{SEED}:{key}".encode()))
    drawn = generator.standard_normal(shape, dtype=numpy.float32)
    if last == "running_mean":
        drawn = 0.1 * drawn
    elif last == "running_var":
        drawn = 1 + 0.2 * numpy.abs(drawn)
    elif last == "bias":
        drawn = 0.05 * drawn
    elif len(shape) == 1:
        drawn = 1 + 0.1 * drawn
    else:
        drawn = drawn * (1.4 / math.sqrt(math.prod(shape[1:])))
    return torch.from_numpy(numpy.asarray(drawn, dtype=numpy.float32))
