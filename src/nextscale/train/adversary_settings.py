"""Settings of the discriminator that a tokenizer may be trained against. No torch here."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class AugmentSettings(BaseModel):
    """Disturbances of what the discriminator sees, original or reconstruction; 0 is off."""

    model_config = _FROZEN
    colour: float = Field(
        0.5, ge=0, le=1, description="strength of changes of brightness, saturation, contrast"
    )
    shift: float = Field(0.125, ge=0, le=0.5, description="largest shift / side of the image")
    cut_out: float = Field(0.25, ge=0, le=1, description="side of the gray square / side of the image")


class DiscriminatorSettings(BaseModel):
    """The discriminator and its training; it counts when ``losses.adversarial`` is above 0."""

    model_config = _FROZEN
    dino_weights: str = Field(
        "", description="a DINO ViT: small heads judge what it sees; empty: convolutions judge patches"
    )
    base_dim: int = Field(32, ge=8, multiple_of=8, description="channels of its first level, or of the heads")
    num_levels: int = Field(3, ge=1, description="levels, each of which halves the resolution")
    spectral_norm: bool = Field(False, description="divide every kernel by its largest singular value")
    augment: AugmentSettings = AugmentSettings()
    consistency: float = Field(0.0, ge=0, description="weight of judging images as before their disturbance")
    start: float = Field(0.2, ge=0, lt=1, description="share of the training after which it begins")
    warmup_share: float = Field(0.02, ge=0, le=1, description="share over which its weight then grows")
    min_weight: float = Field(0.015, ge=0, description="least adaptive weight")
    max_weight: float = Field(1e4, gt=0, description="largest adaptive weight")
    lr_factor: float = Field(1.0, gt=0, description="its learning rate / that of the tokenizer")
    betas: tuple[float, float] = Field((0.5, 0.9), description="AdamW's averages")
    clip_norm: float = Field(2.0, gt=0, description="largest norm of its gradient")

    @model_validator(mode="after")
    def _check_parts(self) -> DiscriminatorSettings:
        if self.min_weight > self.max_weight:
            raise ValueError(
                f"min_weight {self.min_weight} exceeds max_weight {self.max_weight}: the adaptive weight has "
                "no room; lower the one or raise the other"
            )
        default = type(self).model_fields["num_levels"].default
        if self.dino_weights and self.num_levels != default:
            raise ValueError(
                f"num_levels {self.num_levels} would have no effect, since dino_weights replaces the levels: "
                "leave one of them out"
            )
        disturbed = self.augment.colour or self.augment.shift or self.augment.cut_out
        if self.consistency and not disturbed:
            raise ValueError(
                "consistency compares images before and after their disturbance, but augment is all 0: "
                "set consistency 0, or one of augment above 0"
            )
        return self
