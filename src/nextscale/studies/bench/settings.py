"""Settings of a benchmark. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nextscale.generate.settings import ModelSettings
from nextscale.train.settings import PriorRun

Action = Literal["generate", "train", "tokenize", "compare"]
Dtype = Literal["float32", "bfloat16"]

#: Bytes of a number.
WORD = {"float32": 4, "bfloat16": 2, "int8": 1}


class Sized(BaseModel):
    """A model of a known size, at one size of images."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(description="what its size is called, d16 for example")
    px: int = Field(description="side of its images in pixels")
    model: ModelSettings
    run: PriorRun = Field(description="how such a prior is trained")


class BenchSettings(BaseModel):
    """What is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    action: Action
    sized: tuple[Sized, ...] = Field(min_length=1, description="the models, each at one size of images")
    batches: tuple[int, ...] = Field((1,), min_length=1, description="images at a time")
    dtypes: tuple[Dtype, ...] = Field(("float32", "bfloat16"), min_length=1, description="of the products")
    rounds: int = Field(5, ge=1, description="times that everything is timed, in turn; medians count")
    compile: bool = Field(False, description="compile the blocks of the default path (train)")
    cuda_graphs: bool = Field(False, description="replay the default path's passes on a GPU (generate)")
    num_workers: int = Field(2, ge=0, description="processes that decode images (tokenize)")

    @model_validator(mode="after")
    def _check_lists(self) -> BenchSettings:
        if min(self.batches) < 1:
            raise ValueError(f"--batch {min(self.batches)}: expected whole numbers from 1")
        named = [f"{sized.name} at {sized.px} px" for sized in self.sized]
        for option, values in (("sizes", named), ("batch", self.batches), ("dtype", self.dtypes)):
            if len(set(values)) < len(values):
                raise ValueError(f"--{option} names {', '.join(map(str, values))}: give each once")
        return self
