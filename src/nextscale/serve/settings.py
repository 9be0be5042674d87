"""Settings of the engine. No torch here."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EngineSettings(BaseModel):
    """How orders become batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_batch: int = Field(32, ge=1, description="images in one batch; those of one order stay together")
    max_queue: int = Field(256, ge=1, description="images that may wait; more are refused")
    deadline_s: float = Field(60.0, gt=0, description="seconds after which an order is worthless")
