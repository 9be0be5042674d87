"""What the three families of priors have in common: a table of classes, modulated blocks, a modulated head.

Letters: B batch, T tokens, D model width.
Special here: a family adds how its inputs are made and who attends to whom. Layers are made in the order in
which initial weights are drawn, so a family's own layers come between the table and the blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nextscale.prior.cache import KeyValueCache
from nextscale.prior.layers import Attend, Block, at_least_float32, attend_to
from nextscale.prior.sampling_block import SamplingBlock
from nextscale.prior.settings import TransformerSettings


class Condition(NamedTuple):
    """All that the condition (the labels, in diffusion also the time) decides, computed once per image."""

    start_BD: Tensor
    blocks: list[Tensor]  #: modulation (B, 6, D) of each block
    head_B2D: Tensor

    def first(self, batch: int) -> Condition:
        """Of the first ``batch`` images."""
        return Condition(self.start_BD[:batch], [part[:batch] for part in self.blocks], self.head_B2D[:batch])


class Transformer(nn.Module):
    """The shared part.

    Args:
        settings: its sizes.
        num_classes: the unconditional class gets this number as its label.
    """

    def __init__(self, settings: TransformerSettings, *, num_classes: int) -> None:
        super().__init__()
        self.settings, self.num_classes = settings, num_classes
        self.class_embedding = empty_embedding(num_classes + 1, settings.width)

    def _add_blocks(self, *, out_dim: int) -> None:
        """Make blocks and head, after the family's own layers."""
        settings, width = self.settings, self.settings.width
        self.shared_modulation = nn.Linear(width, 6 * width) if settings.shared_adaln else None
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.depth))
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, out_dim)

    @torch.no_grad()
    def _init_weights(self, positions: Iterable[Tensor], *, head_factor: float = 0.02) -> None:
        """As the released trainer: std sqrt(1 / 3D), residual outputs shrunk with depth, small gates, a tiny
        head. On the meta device there is nothing to fill.
        """
        if self.head.weight.is_meta:
            return
        std = (1 / self.settings.width / 3) ** 0.5
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for position in positions:
            nn.init.trunc_normal_(position, std=std)
        self.head.weight.mul_(head_factor)
        self.head_modulation.weight.mul_(0.5)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.shrink_residuals(self.settings)

    @property
    def unconditional(self) -> int:
        """The label that stands for no class."""
        return self.num_classes

    def _condition(self, embedded_BD: Tensor) -> Condition:
        shared = None
        if self.shared_modulation is not None:
            shared = self.shared_modulation(F.silu(embedded_BD)).view(-1, 6, self.settings.width)
        head = self.head_modulation(F.silu(embedded_BD)).view(-1, 2, self.settings.width)
        modulations = [
            block.modulate(embedded_BD, shared)
            for block in self.blocks
            if isinstance(block, (Block, SamplingBlock))
        ]
        return Condition(embedded_BD, modulations, head)

    def _through_blocks(
        self, x_BTD: Tensor, condition: Condition, attend: Attend, *, keep_D2B: Tensor | None,
        recompute: bool,
    ) -> Tensor:  # fmt: skip
        """All blocks in training: whole sequences, branches dropped, activations perhaps computed again."""
        for index, block in enumerate(self.blocks):
            keep_2B = None if keep_D2B is None else keep_D2B[index]
            arguments = (x_BTD, condition.blocks[index], attend, keep_2B)
            # nothing random happens inside a block, so there is no random state to restore
            x_BTD = (
                checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
                if recompute
                else block(*arguments)
            )
        return x_BTD

    def _through_blocks_with(
        self, cache: KeyValueCache, x_BTD: Tensor, condition: Condition, place: slice
    ) -> Tensor:
        """All blocks in sampling: the tokens at ``place``, those before it being in the cache."""
        for index, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, condition.blocks[index], partial(_attend_with_cache, cache, index, place))
        return x_BTD

    def _output(self, x_BTD: Tensor, condition: Condition) -> Tensor:
        scale, shift = condition.head_B2D.unsqueeze(2).unbind(1)
        normed = F.layer_norm(at_least_float32(x_BTD), (self.settings.width,), eps=self.settings.norm_eps)
        return at_least_float32(self.head((normed * (scale + 1) + shift).to(self.head.weight.dtype)))


class TokenTransformer(Transformer):
    """A transformer over tokens, which labels alone condition, and which samples with a cache."""

    position: nn.Parameter

    def condition(self, labels_B: Tensor) -> Condition:
        """Everything that depends on the labels alone.

        Args:
            labels_B: int64 (B,) in [0, num_classes]; the last one is the unconditional class.
        """
        return self._condition(self.class_embedding(labels_B))

    def new_cache(self, batch: int) -> KeyValueCache:
        """An empty cache for ``batch`` images, in the dtype that attention runs in."""
        return KeyValueCache.like(self.position, self.settings, batch)


def empty_embedding(count: int, width: int) -> nn.Embedding:
    """A table yet to be filled; nn.Embedding's own filling costs seconds of imports on the meta device."""
    return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)


def _attend_with_cache(
    cache: KeyValueCache, block: int, place: slice, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> Tensor:
    keys, values = cache.extend(block, place, key, value)
    return attend_to(query, keys, values, scale)


def drop_path_factors(settings: TransformerSettings, uniforms_BR: Tensor) -> Tensor | None:
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
