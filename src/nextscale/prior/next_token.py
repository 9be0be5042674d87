"""`NextTokenPrior`: a transformer that predicts each token of one map from those before it, row by row, as
VQGAN (arXiv 2012.09841) and LlamaGen (arXiv 2406.06525) do; here on the blocks of the next-scale prior.

Letters: B batch, L tokens, V codes, D model width.
Special here: tokens are read through a table of their own, as in those two, not as code vectors. Position i
predicts token i: it reads token i - 1, the first one the embedding of the class. Places are learned, where
LlamaGen turns queries and keys.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from nextscale.prior.cache import KeyValueCache
from nextscale.prior.layers import attend_to
from nextscale.prior.settings import TransformerSettings
from nextscale.prior.transformer import Condition, TokenTransformer, empty_embedding
from nextscale.scales import ScaleSchedule

_attend_to_earlier = partial(attend_to, causal=True)


class NextTokenPrior(TokenTransformer):
    """A next-token transformer over the tokens of one map.

    Args:
        settings: its sizes.
        schedule: one scale.
        vocab_size: V.
        num_classes: the unconditional class gets this number as its label.

    Raises:
        ValueError: more scales than one.
    """

    def __init__(
        self, settings: TransformerSettings, schedule: ScaleSchedule, *, vocab_size: int, num_classes: int
    ) -> None:
        if schedule.num_scales != 1:
            rows, columns = schedule.latent_size
            raise ValueError(
                f"a next_token prior reads a tokenizer of one scale, given {schedule.num_scales}: train one "
                f"with --schedule.sizes [[{rows},{columns}]] --tokenizer.quantizer.num_phis 1"
            )
        super().__init__(settings, num_classes=num_classes)
        self.schedule = schedule
        self.position = nn.Parameter(torch.empty(schedule.num_tokens, settings.width))
        self.token_embedding = empty_embedding(vocab_size, settings.width)
        self._add_blocks(out_dim=vocab_size)
        self._init_weights([self.position])

    def forward(
        self,
        labels_B: Tensor,
        tokens_BL: Tensor,
        *,
        keep_D2B: Tensor | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """Predict all tokens at once, each from the true ones before it.

        Args:
            labels_B: int64 (B,) in [0, num_classes].
            tokens_BL: int64 (B, L) in [0, V); the last one is not read.
            keep_D2B: float (depth, 2, B) factors of the residual branches (`drop_path_factors`), or None.
            recompute: compute the inside of the blocks again in the backward pass, to save memory.

        Returns:
            logits float32 (B, L, V).

        Raises:
            ValueError: another number of tokens.
        """
        if tokens_BL.ndim != 2 or tokens_BL.shape[1] != self.schedule.num_tokens:
            raise ValueError(
                f"expected tokens (B, {self.schedule.num_tokens}), given {tuple(tokens_BL.shape)}"
            )
        condition = self.condition(labels_B)
        x_BTD = torch.cat([condition.start_BD[:, None], self.token_embedding(tokens_BL[:, :-1])], dim=1)
        x_BTD = self._through_blocks(
            x_BTD + self.position, condition, _attend_to_earlier, keep_D2B=keep_D2B, recompute=recompute
        )
        return self._output(x_BTD, condition)

    def step(self, place: int, condition: Condition, before_B: Tensor | None, cache: KeyValueCache) -> Tensor:
        """Predict one token when those before it are in the cache.

        Args:
            place: its number in the sequence, from 0.
            condition: from `condition`.
            before_B: int64 (B,), the token before it; None for the first.
            cache: from `new_cache`; this place is added to it.

        Returns:
            logits float32 (B, 1, V).
        """
        read_BD = condition.start_BD if before_B is None else self.token_embedding(before_B)
        x_BTD = (read_BD + self.position[place])[:, None]
        x_BTD = self._through_blocks_with(cache, x_BTD, condition, slice(place, place + 1))
        return self._output(x_BTD, condition)
