"""The pieces that a model is cut into, as modules whose weights are inputs.

Letters: B rows, T tokens of one scale, P tokens of the coarser scales, V codes, C code width, D model width,
N heads, E head width, K depth.
Special here: a program holds no weights. They are its first inputs, so the steps of all scales share one file
and, once read, one copy in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from nextscale.prior.cache import KeyValueCache
from nextscale.prior.next_scale import NextScalePrior
from nextscale.prior.transformer import Condition
from nextscale.tokenizer.model import Tokenizer

#: Beginnings of names of weights that only the part of the labels reads.
_OF_LABELS = ("class_embedding", "shared_modulation", "head_modulation")


class Piece(NamedTuple):
    """One program to be."""

    module: WithWeights
    weights_of: str  #: "tokenizer" or "prior"
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]  #: examples of the right shape
    rows: int


class WithWeights(nn.Module):
    """A method of a module as a function of (weights, inputs)."""

    def __init__(self, module: nn.Module, method: Callable[..., object], names: tuple[str, ...]) -> None:
        super().__init__()
        self._called = (_Method(module, method),)  # in a tuple: its weights are no parameters of this one
        self._names = tuple(f"module.{name}" for name in names)

    def forward(self, weights: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> object:
        return torch.func.functional_call(
            self._called[0], dict(zip(self._names, weights, strict=True)), inputs
        )


class _Method(nn.Module):
    def __init__(self, module: nn.Module, method: Callable[..., object]) -> None:
        super().__init__()
        self.module, self._method = module, method

    def forward(self, *inputs: Tensor) -> object:
        return self._method(self.module, *inputs)


class _Past:
    """Stands for a cache inside a step: reads what is given, and remembers what is new."""

    def __init__(self, past: Tensor | None) -> None:
        self.past_K2BNPE, self.new = past, list[Tensor]()

    def extend(self, block: int, place: slice, key_BNTE: Tensor, value_BNTE: Tensor) -> tuple[Tensor, Tensor]:
        self.new.append(torch.stack([key_BNTE, value_BNTE]))
        if self.past_K2BNPE is None:
            return key_BNTE, value_BNTE
        keys, values = self.past_K2BNPE[block]
        return torch.cat([keys, key_BNTE], dim=2), torch.cat([values, value_BNTE], dim=2)


def _condition(prior: NextScalePrior, labels_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    condition = prior.condition(labels_B)
    return condition.start_BD, torch.stack(condition.blocks), condition.head_B2D


def _step(scale: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def step(
        prior: NextScalePrior, start_BD: Tensor, blocks_KB6D: Tensor, head_B2D: Tensor,
        inputs_BTC: Tensor | None = None, past_K2BNPE: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        cache = _Past(past_K2BNPE)
        condition = Condition(start_BD, list(blocks_KB6D.unbind(0)), head_B2D)
        logits = prior.step(scale, condition, inputs_BTC, cast(KeyValueCache, cache))
        return logits, torch.stack(cache.new)

    return step


def _features(tokenizer: Tokenizer, images_BCHW: Tensor) -> Tensor:
    return tokenizer.features(images_BCHW)


def _images(tokenizer: Tokenizer, features_BChw: Tensor) -> Tensor:
    return tokenizer.decode_features(features_BChw)


def tokenizer_pieces(tokenizer: Tokenizer, *, batch: int) -> dict[str, Piece]:
    """Images to features and features to images; the quantiser between them is no program."""
    dtype = tokenizer.pre_quant.weight.dtype
    latent = (batch, tokenizer.quantizer.code_dim, *tokenizer.schedule.latent_size)
    images, features = (
        torch.zeros(shape, dtype=dtype) for shape in ((batch, 3, *tokenizer.image_size), latent)
    )
    parts = {
        "encoder": (_features, ("encoder.", "pre_quant."), {"images": images}),
        "decoder": (_images, ("decoder.", "post_quant."), {"features": features}),
    }
    pieces = {}
    for name, (method, beginnings, inputs) in parts.items():
        weights = {key: value for key, value in tokenizer.state_dict().items() if key.startswith(beginnings)}
        module = WithWeights(tokenizer, method, tuple(weights))
        pieces[name] = Piece(module, "tokenizer", weights, inputs, batch)
    return pieces


def prior_pieces(prior: NextScalePrior, *, rows: int) -> dict[str, Piece]:
    """What labels decide, and one step per scale."""
    weights, settings = prior.state_dict(), prior.settings
    dtype, width, depth = prior.position.dtype, settings.width, settings.depth
    of_labels = {name: value for name, value in weights.items() if _is_of_labels(name)}
    labels = {"labels": torch.zeros(rows, dtype=torch.int64)}
    module = WithWeights(prior, _condition, tuple(of_labels))
    pieces = {"condition": Piece(module, "prior", of_labels, labels, rows)}
    for scale, cells in enumerate(prior.schedule.num_cells):
        unused = "input_projection." if scale == 0 else "start_position"
        own = {
            name: value
            for name, value in weights.items()
            if not (name.startswith((*_OF_LABELS, unused)) or ".modulation" in name)
        }
        inputs = {
            "start": torch.zeros(rows, width, dtype=dtype),
            "blocks": torch.zeros(depth, rows, 6, width, dtype=dtype),
            "head": torch.zeros(rows, 2, width, dtype=dtype),
        }
        if scale:
            past = (depth, 2, rows, settings.heads, prior.offsets[scale], width // settings.heads)
            inputs["inputs"] = torch.zeros(rows, cells, prior.input_projection.in_features)
            inputs["past"] = torch.zeros(past, dtype=dtype)
        module = WithWeights(prior, _step(scale), tuple(own))
        pieces[f"step{scale:02d}"] = Piece(module, "prior", own, inputs, rows)
    return pieces


def _is_of_labels(name: str) -> bool:
    return name.startswith(_OF_LABELS) or ".modulation" in name
