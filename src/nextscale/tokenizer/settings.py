"""Settings of the tokenizer. No torch here: reading a config must stay cheap."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: Of an encoder; the quantiser is always in float32.
Precision = Literal["float32", "bfloat16"]


class AutoencoderSettings(BaseModel):
    """The convolutional encoder and decoder (VQGAN). Its reduction is ``2 ** (len(multipliers) - 1)``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    base_dim: int = Field(160, ge=1, description="channels at full resolution")
    multipliers: tuple[int, ...] = Field(
        (1, 1, 2, 2, 4), min_length=1, description="channels per level / base_dim"
    )
    num_res_blocks: int = Field(2, ge=1, description="residual blocks per level (the decoder has one more)")
    norm_groups: int = Field(32, ge=1, description="groups of every GroupNorm")
    attention: bool = Field(True, description="self-attention at the lowest resolution and in the middle")

    @property
    def reduction(self) -> int:
        """Pixels per latent cell along each side: 4 for f4, 8 for f8, 16 for f16."""
        return int(2 ** (len(self.multipliers) - 1))

    @model_validator(mode="after")
    def _check_groups(self) -> AutoencoderSettings:
        for multiplier in self.multipliers:
            if (self.base_dim * multiplier) % self.norm_groups:
                raise ValueError(
                    f"base_dim {self.base_dim} x multiplier {multiplier} is not divisible by norm_groups "
                    f"{self.norm_groups}: change one of the three"
                )
        return self


class QuantizerSettings(BaseModel):
    """The multi-scale residual quantiser (paper, section 3.2)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    vocab_size: int = Field(4096, ge=2, description="number of codes, V")
    code_dim: int = Field(32, ge=1, description="width of a code vector, C")
    num_phis: int = Field(4, ge=0, description="smoothing convolutions: 1 shared, n nearest, 0 one per scale")
    phi_ratio: float = Field(
        0.5, ge=0, le=1, description="share of the convolution in phi(x) = (1-r) x + r conv(x)"
    )
    unit_codes: bool = Field(
        False, description="compare directions, not distances, when looking for the nearest code"
    )
    phi_of_scale: tuple[int, ...] | None = Field(
        None, description="phi per scale; None: the nearest, as released"
    )


class TokenizerSettings(BaseModel):
    """Images to tokens and back."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    quantizer: QuantizerSettings = QuantizerSettings()
