"""What clients may send, and what they are sent. No torch here.

Special here: fields of the Images API that mean nothing to these models are taken with the values that ask
for nothing, and refused with others. Unknown fields are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from nextscale.generate.settings import Task

Format = Literal["png", "jpeg", "webp"]
_Prompt = Annotated[str, StringConstraints(max_length=1000)]
_Ignored = Annotated[str, StringConstraints(max_length=1000)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_LARGEST_SEED = 2**63 - 1


class Sampled(BaseModel):
    """How pictures are drawn; what is not given is the model's own."""

    model_config = ConfigDict(extra="forbid")
    seed: int | None = Field(
        None,
        ge=0,
        le=_LARGEST_SEED,
        description="of the first picture, the others count up; else a random one",
    )
    guidance: _Number | None = Field(None, ge=0, description="classifier-free guidance; 0 is off")
    top_k: int | None = Field(None, ge=0, description="draw among the k likeliest codes; 0 is off")
    top_p: _Number | None = Field(
        None, gt=0, le=1, description="of the likeliest codes with this probability"
    )
    temperature: _Number | None = Field(None, gt=0, description="divides the logits")
    num_unguided_scales: int | None = Field(None, ge=0, description="last scales without guidance")
    ssg: _Number | None = Field(None, ge=0, description="scaled spatial guidance; 0 is off")
    sampler: Literal["ddim", "ddpm"] | None = Field(None, description="of diffusion")
    num_steps: int | None = Field(None, ge=1, le=1000, description="of diffusion")
    deadline_s: _Number | None = Field(
        None, gt=0, description="seconds after which the pictures are worthless; at most the server's own"
    )


class _Common(Sampled):
    prompt: _Prompt = Field(description="name or number of a class; empty or none: no class")
    model: _Ignored | None = Field(None, description="as GET /v1/models lists it")
    n: int | None = Field(None, ge=1, description="pictures; 1 unless given")
    size: _Ignored | None = Field(None, description="auto, or WIDTHxHEIGHT of the model's pictures")
    response_format: Literal["b64_json"] | None = Field(None, description="pictures come as base64 only")
    output_format: Format | None = Field(None, description="png unless given")
    output_compression: int | None = Field(None, ge=0, le=100, description="quality of jpeg and webp")
    stream: bool | None = Field(None, description="whether pictures on their way are sent as events")
    partial_images: int | None = Field(None, ge=0, le=3, description="how many of them, with stream")
    background: Literal["auto", "opaque"] | None = Field(None, description="pictures are opaque")
    quality: Literal["auto", "standard", "high"] | None = Field(None, description="there is only one")
    moderation: Literal["auto", "low"] | None = Field(None, description="without effect")
    user: _Ignored | None = Field(None, description="without effect")
    safety_identifier: _Ignored | None = Field(None, description="without effect")


class Generation(_Common):
    """``POST /v1/images/generations``."""


class Edited(Sampled):
    """What of a picture stays."""

    task: Task | None = Field(
        None, description="inpaint where a mask is given, otherwise variation, or upscale of smaller pictures"
    )
    from_scale: int | None = Field(None, ge=0, description="coarser scales than this are kept whole")
    hide: bool | None = Field(None, description="whether the encoder is kept from seeing the hole")
    paste: bool | None = Field(None, description="whether kept pixels are put back")
    feather: int | None = Field(None, ge=0, le=4096, description="pixels over which seams fade")
    share: _Number | None = Field(None, gt=0, lt=1, description="of outpaint: of the canvas's sides")
    place: str | None = Field(None, max_length=40, description="of outpaint: DOWN,RIGHT from 0 to 1")


class Edit(_Common, Edited):
    """``POST /v1/images/edits``, as multipart form."""

    image: UploadFile | None = Field(None, description="the picture")
    images: list[UploadFile] | None = Field(
        None, alias="image[]", description="the picture, as a list of one"
    )
    mask: UploadFile | None = Field(None, description="transparent where to generate anew; of the same size")
    input_fidelity: Literal["high", "low"] | None = Field(None, description="without effect")


class Picture(BaseModel):
    """One finished picture."""

    b64_json: str
    revised_prompt: str = Field(description="name of the class; none")
    seed: int
    url: None = None


class Usage(BaseModel):
    """Tokens that were drawn; the prompt counts none."""

    input_tokens: int = 0
    input_tokens_details: dict[str, int] = {"image_tokens": 0, "text_tokens": 0}
    output_tokens: int
    total_tokens: int


class Pictures(BaseModel):
    """Answer to a generation or edit that was not streamed."""

    created: int
    background: Literal["opaque"] = "opaque"
    data: list[Picture]
    output_format: Format
    size: str
    usage: Usage
    settings: dict[str, Any] = Field(description="every sampling setting that decided")


class Model(BaseModel):
    """A model that is served."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "nextscale"


class Models(BaseModel):
    """All of them: one."""

    object: Literal["list"] = "list"
    data: list[Model]


class NativeGeneration(Sampled):
    """``POST /api/generate``."""

    labels: list[int | str | None] = Field(min_length=1, description="one per picture; null: no class")
    seeds: list[Annotated[int, Field(ge=0, le=_LARGEST_SEED)]] | None = Field(
        None, description="one per picture; else seed and what follows it"
    )
    stream: bool = Field(True, description="whether every scale is sent as an event, or the end alone")


class NativeEdit(Edited):
    """``POST /api/edit``, as multipart form."""

    image: UploadFile = Field(description="the picture")
    mask: UploadFile | None = Field(None, description="transparent where to generate anew; of the same size")
    label: _Prompt = Field("", description="name or number of a class; empty or none: no class")
    n: int = Field(1, ge=1, description="pictures")
    stream: bool = Field(True, description="as of /api/generate")


class ModelCard(BaseModel):
    """``GET /api/model``."""

    name: str
    kind: str = Field(description="family of the prior")
    class_names: list[str]
    height: int
    width: int
    scales: list[list[int]] = Field(description="(rows, columns) of each map of tokens")
    sampling: dict[str, Any] = Field(description="the model's own settings")
    tasks: list[Task] = Field(description="edits that it can do")
    dtype: str
    max_images: int
