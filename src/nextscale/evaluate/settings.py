"""Settings of scoring: what a protocol fixes, what a reference records of itself. No torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

#: What a model has seen of the images that it is held against.
Kind = Literal["training", "validation"]
#: Networks whose features are compared.
Features = Literal["cifar", "classifier", "inception", "dinov2"]


class Protocol(BaseModel):
    """Everything that must be the same before two scores of samples may be compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    description: str = Field(description="in a sentence, with where it comes from")
    num_classes: int = Field(ge=1, description="classes that the model must have")
    samples_per_class: int = Field(ge=1, description="samples of each; all classes in turn")
    first_seed: int = Field(0, ge=0, description="seed of the first sample; the others count on, one each")
    guidance: float | None = Field(None, ge=0, description="at the last scale; left out: the model's own")
    top_k: int | None = Field(None, ge=0, description="left out: the model's own")
    top_p: float | None = Field(None, gt=0, le=1, description="left out: the model's own")
    temperature: float | None = Field(None, gt=0, description="left out: the model's own")
    features: Features = Field(description="the network whose features are compared")
    reference_kind: Kind = Field(description="images that the samples are held against")
    rounding: Literal["uint8, to the nearest"] = Field(
        "uint8, to the nearest", description="of pixels, before any features are taken; no file in between"
    )

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling settings that it fixes; the others are the model's own."""
        names = ("guidance", "top_k", "top_p", "temperature")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def num_samples(self) -> int:
        """Samples of all classes together."""
        return self.num_classes * self.samples_per_class


class ReferenceRecord(BaseModel):
    """What is known of the images that scores are held against; printed with every score."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: Literal[1] = Field(1, description="of the file; older software refuses a newer one")
    kind: Kind = Field(description="as whoever made it said; nothing can be read off the images")
    source: str = Field(description="what the images were read from")
    count: int | None = Field(description="images; None: the file does not say")
    image_size: tuple[int, int] | None = Field(description="(H, W) in pixels; None: the file does not say")
    preprocessing: str = Field(description="what happened to the images before the network saw them")
    features: Features
    metric: str = Field(description="name of the Fréchet distance between such features")
    features_digest: str | None = Field(description="of the network's weights; None: the file does not say")
    class_names: tuple[str, ...] | None = Field(description="None: unknown")
    versions: dict[str, str] = Field(description="of what made it")
