"""Settings of networks that look at images. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ClassifierSettings(BaseModel):
    """A small convolutional network."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    image_size: int = Field(32, ge=8, description="side of its square input in pixels")
    stem_dim: int = Field(
        24, ge=1, description="channels of the first layer; 24 holds all whitened 2x2 patches"
    )
    dims: tuple[int, ...] = Field((64, 256, 256), min_length=1, description="channels per level")
    class_names: tuple[str, ...] = Field((), description="one name per output, filled in from the data")


class PerceptualSettings(BaseModel):
    """Which network compares images. Weights are a .safetensors or .pth file, or hub:OWNER/NAME/FILE."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    network: Literal["classifier", "vgg16"] = Field(
        "classifier", description="classifier: the bundled one for CIFAR-10; vgg16: needs weights"
    )
    weights: str = Field("", description="of vgg16, as torchvision or LPIPS name them")
    heads: str = Field("", description="LPIPS weights per channel of vgg16; empty: all channels count alike")

    @model_validator(mode="after")
    def _check_files(self) -> PerceptualSettings:
        if self.network == "classifier" and (self.weights or self.heads):
            raise ValueError("weights and heads are those of vgg16: set network vgg16, or leave them empty")
        return self


class ViTSettings(BaseModel):
    """A vision transformer; the defaults are ViT-S/16."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    image_size: int = Field(224, ge=1, description="side of its square input in pixels")
    patch_size: int = Field(16, ge=1, description="side of a patch in pixels")
    width: int = Field(384, ge=1, description="width of a token, D")
    depth: int = Field(12, ge=1, description="number of blocks")
    num_heads: int = Field(6, ge=1, description="heads of every attention")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of the feed-forward / D")
    layer_scale: bool = Field(False, description="a learned factor per channel on what a block adds (DINOv2)")

    @property
    def num_patches(self) -> int:
        """h * w."""
        return int((self.image_size // self.patch_size) ** 2)
