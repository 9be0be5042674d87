"""Keys and values of the scales that are done, preallocated for the whole schedule and handed in by the
caller.

Letters: B batch, L tokens of all scales, T tokens of one scale, N heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.prior.settings import PriorSettings


class KeyValueCache:
    """One generation's memory; drop it and nothing is left behind."""

    def __init__(
        self,
        settings: PriorSettings,
        num_tokens: int,
        batch: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (settings.depth, 2, batch, settings.heads, num_tokens, settings.width // settings.heads)
        self.tensor = torch.empty(shape, device=device, dtype=dtype)

    def extend(self, block: int, place: slice, key_BNTE: Tensor, value_BNTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store a scale's keys and values of one block; return those of the prefix that ends with it (B, N,
        <=L, E).
        """
        keys, values = self.tensor[block]
        keys[:, :, place], values[:, :, place] = key_BNTE, value_BNTE
        return keys[:, :, : place.stop], values[:, :, : place.stop]

    def keep_first(self, batch: int) -> None:
        """Go on with the first ``batch`` images alone, whose keys and values stay where they are."""
        self.tensor = self.tensor[:, :, :batch]
