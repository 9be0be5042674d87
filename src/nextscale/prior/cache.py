"""Keys and values of the tokens that are done, preallocated for the whole sequence and handed in by the
caller.

Letters: B batch, L all tokens, T tokens of one step, D model width, N heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.prior.settings import TransformerSettings


class KeyValueCache:
    """One generation's memory; drop it and nothing is left behind."""

    def __init__(
        self,
        settings: TransformerSettings,
        num_tokens: int,
        batch: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (settings.depth, 2, batch, settings.heads, num_tokens, settings.width // settings.heads)
        self.tensor = torch.empty(shape, device=device, dtype=dtype)

    @classmethod
    def like(cls, position_LD: Tensor, settings: TransformerSettings, batch: int) -> KeyValueCache:
        """An empty cache for as many tokens as there are places, in the dtype that attention runs in."""
        device, dtype = position_LD.device, position_LD.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        return cls(settings, len(position_LD), batch, device=device, dtype=dtype)

    def extend(self, block: int, place: slice, key_BNTE: Tensor, value_BNTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of a scale or a token in one block; return those of the prefix that ends
        with it (B, N, <=L, E).
        """
        keys, values = self.tensor[block]
        keys[:, :, place], values[:, :, place] = key_BNTE, value_BNTE
        return keys[:, :, : place.stop], values[:, :, : place.stop]

    def keep_first(self, batch: int) -> None:
        """Go on with the first ``batch`` images alone, whose keys and values stay where they are."""
        self.tensor = self.tensor[:, :, :batch]
