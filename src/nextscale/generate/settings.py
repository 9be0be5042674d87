"""Settings of generation and of a whole model. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nextscale.prior.settings import AnyPriorSettings
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.settings import TokenizerSettings

#: What only a diffusion prior knows, and all that it knows; all that a next-token prior knows.
_OF_DIFFUSION = ("sampler", "num_steps")
_KNOWN = {
    "next_token": ("guidance", "top_k", "top_p", "temperature"),
    "diffusion": ("guidance", *_OF_DIFFUSION),
}

#: What an edit is for.
Task: TypeAlias = Literal["inpaint", "outpaint", "replace", "variation", "upscale"]
#: Steps of diffusion where none are given.
DEFAULT_STEPS = {"ddim": 50, "ddpm": 250}


class SamplingSettings(BaseModel):
    """How images are drawn. A model carries the values that suit it; every call may give others."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    guidance: float = Field(
        1.5, ge=0, description="classifier-free guidance (next_scale: at the last scale); 0 is off"
    )
    top_k: int = Field(0, ge=0, description="draw among the k likeliest codes; 0 is off")
    top_p: float = Field(
        1.0, gt=0, le=1, description="draw among the likeliest codes that hold this probability; 1 is off"
    )
    temperature: float = Field(1.0, gt=0, description="divides the logits")
    num_unguided_scales: int = Field(
        0, ge=0, description="last scales without guidance, at half the work; 0: all scales get it"
    )
    ssg: float = Field(
        0.0, ge=0, description="scaled spatial guidance away from the coarser scale's logits; 0 is off"
    )
    sampler: Literal["ddim", "ddpm"] = Field(
        "ddim", description="of diffusion: ddim draws the first noise only, ddpm some at every step"
    )
    num_steps: int | None = Field(
        None, ge=1, le=1000, description="of diffusion; None: 50 with ddim, 250 with ddpm"
    )

    def known_to(self, kind: str) -> dict[str, Any]:
        """Those settings that have an effect on a prior of this kind."""
        return {name: value for name, value in self.model_dump().items() if _is_known(name, kind)}

    def refuse_idle(self, kind: str) -> None:
        """Raise ValueError when a setting other than the default would have no effect on such a prior."""
        fields = type(self).model_fields
        refuse_idle(kind, (name for name in fields if getattr(self, name) != fields[name].default))


class EditSettings(BaseModel):
    """What of a given image an edit keeps, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    from_scale: int | None = Field(
        None, ge=0,
        description="the first scale that is generated, coarser ones are kept whole; None: by the task",
    )  # fmt: skip
    hide: bool | None = Field(
        None, description="whether the encoder is kept from seeing the hole; None: of inpaint"
    )
    paste: bool = Field(
        True,
        description="put kept pixels back over the result; of upscale: make it shrink to the small image",
    )
    feather: int | None = Field(
        None, ge=0,
        description="pixels over which the seam of pasted pixels fades into the hole; None: half a cell",
    )  # fmt: skip
    share: float = Field(0.5, gt=0, lt=1, description="of outpaint: share of the canvas's sides")
    place: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = Field(
        (0.5, 0.5), description="of outpaint: down and right, where the image stands on the canvas"
    )


def refuse_idle(kind: str, names: Iterable[str]) -> None:
    """Raise ValueError when one of these sampling settings would have no effect on a prior of this kind."""
    for name in names:
        if not _is_known(name, kind):
            raise ValueError(f"{name} would have no effect: the prior is of kind {kind}; leave it out")


def _is_known(name: str, kind: str) -> bool:
    return name in _KNOWN[kind] if kind in _KNOWN else name not in _OF_DIFFUSION


class ModelSettings(BaseModel):
    """The ``config.json`` of a model folder: one place that training, sampling and evaluation all read."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: Literal[1] = Field(1, description="of the folder; older software refuses a newer one")
    schedule: ScaleSchedule
    tokenizer: TokenizerSettings
    prior: AnyPriorSettings | None = None
    class_names: tuple[str, ...] = ()
    enlarge: float = Field(
        1.0, ge=1, description="preprocessing of training images: short side after resizing / crop"
    )
    sampling: SamplingSettings = SamplingSettings()

    @model_validator(mode="after")
    def _check_sampling(self) -> ModelSettings:
        if self.prior is not None:
            self.sampling.refuse_idle(self.prior.kind)
        return self
