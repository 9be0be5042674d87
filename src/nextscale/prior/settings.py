"""Settings of the prior. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class PriorSettings(BaseModel):
    """A next-scale transformer; all sizes follow from ``depth`` unless they are given (paper, section 4)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["next_scale"] = "next_scale"
    depth: int = Field(16, ge=1, description="number of blocks, d")
    model_dim: int | None = Field(None, ge=1, description="width, D; None: 64 d")
    num_heads: int | None = Field(None, ge=1, description="heads, N; None: d")
    drop_path: float | None = Field(None, ge=0, lt=1, description="rate at the last block; None: 0.1 d / 24")
    class_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of labels replaced by the unconditional class"
    )
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of the MLP / D")
    shared_adaln: bool = Field(
        False, description="one modulation layer for all blocks, with an offset per block"
    )
    unit_qk: bool = Field(
        True, description="attention of unit-length queries and keys with a learned scale per head"
    )
    gate_init: float = Field(
        1e-3, gt=0, description="factor on the initial weights that make the residual gates"
    )
    norm_eps: float = Field(1e-6, gt=0, description="epsilon of every LayerNorm")

    @property
    def width(self) -> int:
        """D."""
        return self.model_dim or 64 * self.depth

    @property
    def heads(self) -> int:
        """N."""
        return self.num_heads or self.depth

    @property
    def drop_path_rate(self) -> float:
        """Stochastic depth at the last block; it grows linearly from 0 at the first."""
        return 0.1 * self.depth / 24 if self.drop_path is None else self.drop_path
