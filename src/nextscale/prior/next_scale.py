"""`NextScalePrior`: a transformer that predicts each token map from the coarser ones (paper, section 3.1,
equation 5).

Letters: B batch, S scales, L tokens of all scales, T tokens of one scale, V codes, C width of a code, D
model width.
Special here: block-causal attention without a mask. The queries of a scale attend to the prefix of keys
that ends with their scale, in training (all scales of one pass) as in sampling (one scale a pass, keys in a
cache). Only where they are short, several scales share one masked call in training, which is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from nextscale.prior.cache import KeyValueCache
from nextscale.prior.layers import attend_to
from nextscale.prior.settings import MOST_MASKED, TransformerSettings
from nextscale.prior.transformer import Condition, TokenTransformer, empty_embedding
from nextscale.scales import ScaleSchedule


def block_causal_mask(offsets: Sequence[int], device: torch.device) -> Tensor:
    """Who attends to whom: bool (L, L), True where the key's scale is not finer than the query's.

    Made where it is needed, of comparisons alone: no number travels to the device, which would have to wait.

    Args:
        offsets: of the scales, L at the end.
        device: of the mask.
    """
    places_L = torch.arange(offsets[-1], device=device)
    levels_L = torch.zeros_like(places_L)
    for offset in offsets[1:-1]:
        levels_L = levels_L + (places_L >= offset)
    return levels_L <= levels_L[:, None]


def num_masked(offsets: Sequence[int], device: torch.device) -> int:
    """How many of the first scales share one masked call in training: all, where they are short together; on
    CPUs all but the last, whose calls cost more than what the mask hides; elsewhere none.
    """
    if offsets[-1] <= MOST_MASKED:
        return len(offsets) - 1
    return len(offsets) - 2 if device.type == "cpu" else 0


class NextScalePrior(TokenTransformer):
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
        settings: TransformerSettings,
        schedule: ScaleSchedule,
        *,
        vocab_size: int,
        code_dim: int,
        num_classes: int,
    ) -> None:
        super().__init__(settings, num_classes=num_classes)
        self.schedule, self.offsets = schedule, tuple(schedule.offsets)  # plain numbers, for the compiler
        width, first = settings.width, schedule.num_cells[0]
        self.start_position = nn.Parameter(torch.empty(first, width))
        self.position = nn.Parameter(torch.empty(schedule.num_tokens, width))
        self.level_embedding = empty_embedding(schedule.num_scales, width)
        self.input_projection = nn.Linear(code_dim, width)
        self._add_blocks(out_dim=vocab_size)
        self._init_weights([self.start_position, self.position])

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
        x_BTD = self._through_blocks(
            x_BTD + self._places(), condition, self._attend_to_prefixes,
            keep_D2B=keep_D2B, recompute=recompute,
        )  # fmt: skip
        return self._output(x_BTD, condition)

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
        x_BTD = x_BTD + (self.position[place] + self.level_embedding.weight[scale])
        x_BTD = self._through_blocks_with(cache, x_BTD, condition, place)
        return self._output(x_BTD, condition)

    def _start(self, condition: Condition) -> Tensor:
        return condition.start_BD[:, None] + self.start_position

    def _places(self) -> Tensor:
        levels = torch.tensor(self.schedule.level_ids, device=self.position.device)
        return self.position + self.level_embedding(levels)

    def _attend_to_prefixes(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        count, mixed = num_masked(self.offsets, query.device), []
        if count:
            end, mask = self.offsets[count], block_causal_mask(self.offsets[: count + 1], query.device)
            mixed.append(attend_to(query[:, :, :end], key[:, :, :end], value[:, :, :end], scale, mask=mask))
        mixed += [
            attend_to(query[:, :, start:end], key[:, :, :end], value[:, :, :end], scale)
            for start, end in pairwise(self.offsets[count:])
        ]
        return torch.cat(mixed, dim=2) if len(mixed) > 1 else mixed[0]
