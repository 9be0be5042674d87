"""Settings of the three families of priors. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

#: Width of the sines and cosines that tell a diffusion prior the time; as in DiT.
TIME_DIM = 256
#: Tokens up to which CPUs train attention in float32, and all scales share one masked call (docs/log.md).
MOST_MASKED = 256


class TransformerSettings(BaseModel):
    """The blocks that all families share; all sizes follow from ``depth`` unless they are given (paper,
    section 4).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
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


class PriorSettings(TransformerSettings):
    """A next-scale transformer: each token map from the coarser ones."""

    kind: Literal["next_scale"] = Field("next_scale", description="family: next_scale, next_token, diffusion")


class NextTokenSettings(TransformerSettings):
    """A next-token transformer: each token of one map from those before it, row by row."""

    kind: Literal["next_token"] = Field("next_token", description="family: next_scale, next_token, diffusion")


class DiffusionSettings(TransformerSettings):
    """A diffusion transformer on the tokenizer's features (DiT, arXiv 2212.09748)."""

    kind: Literal["diffusion"] = Field("diffusion", description="family: next_scale, next_token, diffusion")
    gate_init: float = Field(
        0.0, ge=0, description="factor on the initial weights that make the residual gates; 0: AdaLN-zero"
    )


def _kind_of(value: Any) -> Any:
    """The family of settings or of a tree of values; a tree that names none is a next-scale prior."""
    if isinstance(value, Mapping):
        return value.get("kind", "next_scale")
    return getattr(value, "kind", None)


#: Settings of any family; an option that its family does not know is an error.
AnyPriorSettings: TypeAlias = Annotated[
    Annotated[PriorSettings, Tag("next_scale")]
    | Annotated[NextTokenSettings, Tag("next_token")]
    | Annotated[DiffusionSettings, Tag("diffusion")],
    Discriminator(
        _kind_of,
        custom_error_type="unknown_kind",
        custom_error_message="its kind is unknown: expected next_scale, next_token or diffusion",
    ),
]
