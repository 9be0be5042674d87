"""Settings of generation and of a whole model. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from nextscale.prior.settings import PriorSettings
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.settings import TokenizerSettings


class SamplingSettings(BaseModel):
    """How tokens are drawn. A model carries the values that suit it; every call may give others."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    guidance: float = Field(1.5, ge=0, description="classifier-free guidance at the last scale; 0 is off")
    top_k: int = Field(0, ge=0, description="draw among the k likeliest codes; 0 is off")
    top_p: float = Field(
        1.0, gt=0, le=1, description="draw among the likeliest codes that hold this probability; 1 is off"
    )
    temperature: float = Field(1.0, gt=0, description="divides the logits")
    num_unguided_scales: int = Field(
        0, ge=0, description="last scales without guidance, at half the work; 0: all scales get it"
    )
    ssg: float = Field(
        0.0, ge=0, description="scaled spatial guidance away from the coarser scale's logits; 0 is off"
    )


class ModelSettings(BaseModel):
    """The ``config.json`` of a model folder: one place that training, sampling and evaluation all read."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: Literal[1] = Field(1, description="of the folder; older software refuses a newer one")
    schedule: ScaleSchedule
    tokenizer: TokenizerSettings
    prior: PriorSettings | None = None
    class_names: tuple[str, ...] = ()
    enlarge: float = Field(
        1.0, ge=1, description="preprocessing of training images: short side after resizing / crop"
    )
    sampling: SamplingSettings = SamplingSettings()
