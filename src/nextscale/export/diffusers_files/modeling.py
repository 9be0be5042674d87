"""A nextscale model as a component of a diffusers pipeline; needs the package nextscale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from nextscale import Generator


class NextscaleModel(nn.Module):
    """Tokenizer and prior, which move and load together."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator
        self.tokenizer = generator.tokenizer
        self.prior = generator.prior

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, torch_dtype: torch.dtype | None = None, **_: Any
    ) -> NextscaleModel:
        """Load a model folder; weights in float32 or bfloat16."""
        if torch_dtype not in (None, torch.float32, torch.bfloat16):
            raise ValueError(
                f"torch_dtype {torch_dtype} is not offered: give torch.float32 or torch.bfloat16"
            )
        return cls(Generator.load(folder, dtype="bfloat16" if torch_dtype == torch.bfloat16 else "float32"))

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write the model folder alone."""
        self.generator.save(folder)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.prior.position.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.generator.dtype
