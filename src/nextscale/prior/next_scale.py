"""`NextScalePrior`: a transformer that predicts each token map from the coarser ones (paper, section 3.1,
equation 5).

Letters: B batch, S scales, L tokens of all scales, T tokens of one scale, V codes, C width of a code, D
model width.
Special here: block-causal attention without a mask. The queries of a scale attend to the prefix of keys
that ends with their scale, in training (all scales of one pass) as in sampling (one scale a pass, keys in a
cache).
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nextscale.prior.cache import KeyValueCache
from nextscale.prior.layers import Block, at_least_float32, attend_to
from nextscale.prior.settings import PriorSettings
from nextscale.scales import ScaleSchedule


class Condition(NamedTuple):
    """All that the labels decide, computed once per image."""

    start_BD: Tensor
    blocks: list[Tensor]  #: modulation (B, 6, D) of each block
    head_B2D: Tensor

    def first(self, batch: int) -> Condition:
        """Of the first ``batch`` images."""
        return Condition(self.start_BD[:batch], [part[:batch] for part in self.blocks], self.head_B2D[:batch])


class NextScalePrior(nn.Module):
    """A next-scale transformer over the tokens of a `ScaleSchedule`.

    Args:
        settings: its sizes.
        schedule: the scales.
        vocab_size: V.
        code_dim: C.
        num_classes: the unconditional class gets this number as its label.
    """

    def __init__(
        self,
        settings: PriorSettings,
        schedule: ScaleSchedule,
        *,
        vocab_size: int,
        code_dim: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.settings, self.schedule, self.num_classes = settings, schedule, num_classes
        width, first = settings.width, schedule.num_cells[0]
        self.class_embedding = _empty_embedding(num_classes + 1, width)
        self.start_position = nn.Parameter(torch.empty(first, width))
        self.position = nn.Parameter(torch.empty(schedule.num_tokens, width))
        self.level_embedding = _empty_embedding(schedule.num_scales, width)
        self.input_projection = nn.Linear(code_dim, width)
        self.shared_modulation = nn.Linear(width, 6 * width) if settings.shared_adaln else None
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.depth))
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, vocab_size)
        if not self.head.weight.is_meta:
            self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """As the released trainer: std sqrt(1 / 3D), residual outputs shrunk with depth, small gates, a tiny
        head.
        """
        width = self.settings.width
        std = (1 / width / 3) ** 0.5
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.start_position, std=std)
        nn.init.trunc_normal_(self.position, std=std)
        self.head.weight.mul_(0.02)
        self.head_modulation.weight.mul_(0.5)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.shrink_residuals(self.settings)

    @property
    def unconditional(self) -> int:
        """The label that stands for no class."""
        return self.num_classes

    def condition(self, labels_B: Tensor) -> Condition:
        """Everything that depends on the labels alone.

        Args:
            labels_B: int64 (B,) in [0, num_classes]; the last one is the unconditional class.
        """
        embedded = self.class_embedding(labels_B)
        shared = None
        if self.shared_modulation is not None:
            shared = self.shared_modulation(F.silu(embedded)).view(-1, 6, self.settings.width)
        head = self.head_modulation(F.silu(embedded)).view(-1, 2, self.settings.width)
        modulations = [block.modulate(embedded, shared) for block in self.blocks if isinstance(block, Block)]
        return Condition(embedded, modulations, head)

    def new_cache(self, batch: int) -> KeyValueCache:
        """An empty cache for ``batch`` images, in the dtype that attention runs in."""
        device = self.position.device
        dtype = self.position.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        return KeyValueCache(self.settings, self.schedule.num_tokens, batch, device=device, dtype=dtype)

    def forward(
        self,
        labels_B: Tensor,
        inputs_BLC: Tensor,
        *,
        keep_D2B: Tensor | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """Predict all scales at once, each from the true coarser ones.

        Args:
            labels_B: int64 (B,) in [0, num_classes].
            inputs_BLC: float32 (B, L - T of the first scale, C), `Tokenizer.teacher_inputs`.
            keep_D2B: float (depth, 2, B) factors of the residual branches (`drop_path_factors`), or None.
            recompute: forget what happens inside the blocks and compute it again in the backward pass:
                about a third more work for a fraction of the memory.

        Returns:
            logits float32 (B, L, V).

        Raises:
            ValueError: inputs of another length.
        """
        first, total = self.schedule.num_cells[0], self.schedule.num_tokens
        if inputs_BLC.shape[1] != total - first:
            raise ValueError(f"expected inputs (B, {total - first}, C), given {tuple(inputs_BLC.shape)}")
        condition = self.condition(labels_B)
        x_BTD = torch.cat(
            [self._start(condition), self.input_projection(inputs_BLC.to(self.position.dtype))], dim=1
        )
        x_BTD = x_BTD + self._places(slice(0, total))
        for index, block in enumerate(self.blocks):
            keep_2B = None if keep_D2B is None else keep_D2B[index]
            arguments = (x_BTD, condition.blocks[index], self._attend_to_prefixes, keep_2B)
            # nothing random happens inside a block, so there is no random state to restore
            x_BTD = (
                checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
                if recompute
                else block(*arguments)
            )
        return self._logits(x_BTD, condition)

    def step(
        self, scale: int, condition: Condition, inputs_BTC: Tensor | None, cache: KeyValueCache
    ) -> Tensor:
        """Predict one scale when the coarser ones are in the cache.

        Args:
            scale: its number, 0 the coarsest.
            condition: from `condition`.
            inputs_BTC: float32 (B, T, C), the map so far averaged over this scale's cells; None for the first
                scale.
            cache: from `new_cache`; this scale is added to it.

        Returns:
            logits float32 (B, T, V).
        """
        place = self.schedule.slice(scale)
        if inputs_BTC is None:
            x_BTD = self._start(condition)
        else:
            x_BTD = self.input_projection(inputs_BTC.to(self.position.dtype))
        x_BTD = x_BTD + self._places(place)
        for index, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, condition.blocks[index], partial(_attend_with_cache, cache, index, place))
        return self._logits(x_BTD, condition)

    def _start(self, condition: Condition) -> Tensor:
        return condition.start_BD[:, None] + self.start_position

    def _places(self, place: slice) -> Tensor:
        levels = torch.tensor(self.schedule.level_ids[place], device=self.position.device)
        return self.position[place] + self.level_embedding(levels)

    def _attend_to_prefixes(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        offsets = self.schedule.offsets
        mixed = [
            attend_to(query[:, :, start:end], key[:, :, :end], value[:, :, :end], scale)
            for start, end in pairwise(offsets)
        ]
        return torch.cat(mixed, dim=2)

    def _logits(self, x_BTD: Tensor, condition: Condition) -> Tensor:
        scale, shift = condition.head_B2D.unsqueeze(2).unbind(1)
        normed = F.layer_norm(at_least_float32(x_BTD), (self.settings.width,), eps=self.settings.norm_eps)
        return at_least_float32(self.head((normed * (scale + 1) + shift).to(self.head.weight.dtype)))


def _empty_embedding(count: int, width: int) -> nn.Embedding:
    """A table yet to be filled; nn.Embedding's own filling costs seconds of imports on the meta device."""
    return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)


def _attend_with_cache(
    cache: KeyValueCache, block: int, place: slice, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> Tensor:
    keys, values = cache.extend(block, place, key, value)
    return attend_to(query, keys, values, scale)


def drop_path_factors(settings: PriorSettings, uniforms_BR: Tensor) -> Tensor | None:
    """Stochastic depth: which residual branches each sample skips, and the factor of those it keeps.

    Args:
        settings: the rate grows linearly with the block up to ``drop_path_rate``.
        uniforms_BR: float (B, R >= 2 depth) in [0, 1), the samples' own random numbers.

    Returns:
        float (depth, 2, B), or None when the rate is 0.
    """
    if settings.drop_path_rate == 0:
        return None
    rates = torch.linspace(0, settings.drop_path_rate, settings.depth, device=uniforms_BR.device)[
        :, None, None
    ]
    count = 2 * settings.depth
    assert uniforms_BR.shape[1] >= count, "a sample has too few random numbers for this depth"
    draws = uniforms_BR[:, :count].T.reshape(settings.depth, 2, -1)
    return (draws >= rates).float() / (1 - rates)
