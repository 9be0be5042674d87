"""Settings of data sources and transforms. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DataSettings(BaseModel):
    """Where images come from and what happens to them on the way into training."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: str = Field(
        "",
        description="folder of images (one folder per class), .zip, .tar or .parquet files, hf:owner/name",
    )
    validation: str = Field(
        "", description="the same, never trained on; empty: the last validation_share of source"
    )
    validation_share: float = Field(0.02, gt=0, le=0.5, description="share held out when validation is empty")
    enlarge: float = Field(
        1.125, ge=1, description="short side after resizing / crop side; 1 takes the center crop"
    )
    flip: bool = Field(False, description="mirror half of the training images")
    on_bad_image: Literal["stop", "skip"] = Field(
        "stop", description="an image that cannot be read stops the run, or the next one takes its place"
    )
    num_workers: int = Field(
        0, ge=0, description="processes that decode images; 0 decodes in the training process"
    )
