"""What an exported folder says about itself. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Target = Literal["aoti", "onnx", "torch-export"]

#: How the file of a program ends.
ENDINGS: dict[Target, str] = {"aoti": ".aoti.pt2", "onnx": ".onnx", "torch-export": ".pt2"}


class ProgramSettings(BaseModel):
    """One program."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str = Field(description="name in the folder", pattern=r"^[A-Za-z0-9_.-]+$")
    digest: str = Field(description="SHA-256 of the file", pattern=r"^[0-9a-f]{64}$")
    weights_of: Literal["tokenizer", "prior"] = Field(description="whose .safetensors holds its weights")
    weights: tuple[str, ...] = Field(description="its first inputs, in order")
    inputs: tuple[str, ...] = Field(description="its other inputs, in order")
    rows: int = Field(ge=1, description="rows of every input and output: shapes are static")


class ExportSettings(BaseModel):
    """The ``export.json`` of an exported folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: Literal[1] = Field(1, description="of the folder")
    target: Target
    batch: int = Field(ge=1, description="guided images that one call of a step holds")
    dtype: Literal["float32", "bfloat16"]
    torch_version: str
    programs: dict[str, ProgramSettings]
