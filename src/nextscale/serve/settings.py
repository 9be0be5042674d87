"""Settings of the engine and of the server. No torch here."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class EngineSettings(BaseModel):
    """How orders become batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_batch: int = Field(32, ge=1, description="images in one batch; those of one order stay together")
    max_queue: int = Field(256, ge=1, description="images that may wait; more are refused")
    deadline_s: float = Field(60.0, gt=0, description="seconds after which an order is worthless")


class ServerSettings(BaseModel):
    """Who may ask, and for how much."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    host: str = Field("127.0.0.1", description="address to listen at")
    port: int = Field(8000, ge=0, le=65535, description="0: any free one")
    keys: Path | None = Field(None, description="file of hashed API keys; None: anybody on this machine")
    max_images: int = Field(8, ge=1, description="images of one request")
    max_body: int = Field(16 * 2**20, ge=1024, description="bytes of one request")
    max_pixels: int = Field(4096 * 4096, ge=1, description="pixels of an uploaded picture")
    rate: int = Field(0, ge=0, description="requests a minute of one key; 0: as many as it likes")
    grace_s: float = Field(30.0, ge=0, description="seconds to finish what was accepted when closing down")
    page: bool = Field(False, description="whether there is a page for browsers, which needs gradio")
    max_open: int = Field(512, ge=1, description="requests that are read, made and answered at a time")
    read_timeout_s: float = Field(60.0, gt=0, description="seconds that a request's body may take to come")
    write_timeout_s: float = Field(
        30.0, gt=0, description="seconds a client may leave what it is sent unread"
    )
