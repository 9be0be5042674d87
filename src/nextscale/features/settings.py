"""Settings of networks that look at images. No torch here."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ClassifierSettings(BaseModel):
    """A small residual network."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    image_size: int = Field(32, ge=8, description="side of its square input in pixels")
    dims: tuple[int, ...] = Field((64, 128, 256), min_length=1, description="channels per level")
    class_names: tuple[str, ...] = Field((), description="one name per output, filled in from the data")
