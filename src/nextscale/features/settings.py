"""Settings of networks that look at images. No torch here."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ClassifierSettings(BaseModel):
    """A small convolutional network."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    image_size: int = Field(32, ge=8, description="side of its square input in pixels")
    stem_dim: int = Field(
        24, ge=1, description="channels of the first layer; 24 holds all whitened 2x2 patches"
    )
    dims: tuple[int, ...] = Field((64, 256, 256), min_length=1, description="channels per level")
    class_names: tuple[str, ...] = Field((), description="one name per output, filled in from the data")
