"""Settings of studies. No torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nextscale.evaluate.settings import Features
from nextscale.generate.settings import SamplingSettings, refuse_idle
from nextscale.train.settings import PriorRun, TokenizerRun

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class Rung(BaseModel):
    """One size of a ladder."""

    model_config = _FROZEN
    depth: int = Field(ge=1, description="number of blocks")
    model_dim: int = Field(ge=1, description="width, D")
    num_heads: int = Field(ge=1, description="heads, N")
    base_lr: float | None = Field(None, gt=0, description="learning rate of this size; None: that of the run")

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"depth{self.depth}-width{self.model_dim}"


class ScalingStudy(BaseModel):
    """A ladder of priors that differ in nothing but their size."""

    model_config = _FROZEN
    run: PriorRun
    rungs: tuple[Rung, ...] = Field(description="sizes, smallest first")
    extrapolate: float = Field(10.0, gt=1, description="predict the loss at so many times the largest size")

    @model_validator(mode="after")
    def _check_rungs(self) -> ScalingStudy:
        if len(self.rungs) < 3:
            raise ValueError(f"rungs: {len(self.rungs)} sizes given: a power law needs at least 3")
        names = [rung.name for rung in self.rungs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"rungs: {name} is given twice: sizes must differ")
        if self.run.prior.kind == "diffusion":
            raise ValueError("run.prior.kind diffusion: it predicts no tokens, whose loss the laws are of")
        if self.run.init:
            raise ValueError(
                f"run.init {self.run.init} fits one size at most: sizes start from fresh weights"
            )
        if self.run.cache_views and self.run.data.on_bad_image == "skip" and not self.run.data.validation:
            raise ValueError(
                "run.cache_views with run.data.on_bad_image skip: the sizes would hold out different images; "
                "give run.data.validation, or remove the bad images"
            )
        if self.run.loop.patience:
            raise ValueError(
                f"run.loop.patience {self.run.loop.patience} would train sizes differently long: set it to 0"
            )
        return self


_NAME = r"^[A-Za-z0-9][A-Za-z0-9 .,_=-]*$"  # folders are called so


class Sampled(BaseModel):
    """One way to sample a family. What is left out is as the family's prior says."""

    model_config = _FROZEN
    name: str = Field(pattern=_NAME, description="what it is called")
    guidance: float | None = Field(None, description="classifier-free guidance")
    top_k: int | None = Field(None, description="draw among the k likeliest codes")
    top_p: float | None = Field(None, description="draw among the likeliest codes with this probability")
    temperature: float | None = Field(None, description="divides the logits")
    sampler: Literal["ddim", "ddpm"] | None = Field(None, description="of diffusion")
    num_steps: int | None = Field(None, description="of diffusion")
    candidate: bool = Field(True, description="may be that of the main table; False: for its time and plot")

    @property
    def given(self) -> dict[str, Any]:
        """What it changes."""
        return self.model_dump(exclude={"name", "candidate"}, exclude_none=True)


class Family(BaseModel):
    """One way to make images."""

    model_config = _FROZEN
    name: str = Field(pattern=_NAME, description="what it is called")
    tokenizer: TokenizerRun | None = Field(
        None, description="its tokenizer's training; equal ones are trained once; none: prior.tokenizer_from"
    )
    prior: PriorRun = Field(description="its training; of all families but the first, num_steps is computed")
    samplings: tuple[Sampled, ...] = Field(
        (Sampled(name="own"),),
        description="ways to sample it; the best candidate by few samples is that of the main table",
    )

    @model_validator(mode="after")
    def _check_parts(self) -> Family:
        if (self.tokenizer is None) == (not self.prior.tokenizer_from):
            raise ValueError(f"{self.name}: give either tokenizer or prior.tokenizer_from")
        if self.prior.tokens_from or self.prior.init:
            raise ValueError(f"{self.name}: prior.tokens_from and prior.init have no place in a comparison")
        runs: list[PriorRun | TokenizerRun] = [self.prior]
        if self.tokenizer is not None:
            runs.append(self.tokenizer)
        for run in runs:
            if run.data.source or run.data.validation:
                raise ValueError(f"{self.name}: all families see the images of data.source of the study")
            if run.loop.patience:
                raise ValueError(f"{self.name}: loop.patience would end trainings early: set it to 0")
        names = [sampling.name for sampling in self.samplings]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"{self.name}: samplings {names}: expected at least one, with different names")
        if not any(sampling.candidate for sampling in self.samplings):
            raise ValueError(f"{self.name}: samplings {names}: none is a candidate for the main table")
        for sampling in self.samplings:
            refuse_idle(self.prior.prior.kind, sampling.given)
            SamplingSettings.model_validate(self.prior.sampling.model_dump() | sampling.given)
        return self


class StudyData(BaseModel):
    """The images of all trainings of a study."""

    model_config = _FROZEN
    source: str = Field("", description="images to train on, and to hold samples against")
    validation: str = Field("", description="never trained on; empty: a share of source, as the runs say")


class ComparisonStudy(BaseModel):
    """Families of equal size and equal arithmetic in the training of their priors."""

    model_config = _FROZEN
    data: StudyData = StudyData()
    families: tuple[Family, ...] = Field(description="the first one's steps set the arithmetic of all")
    features: Features = Field("cifar", description="the network whose features are compared")
    weights: str = Field("", description="of that network; none for cifar")
    num_samples: int = Field(10_000, ge=2, description="of each family in the main table")
    few_samples: int = Field(1000, ge=2, description="for every other figure")
    resamples: int = Field(200, ge=2, description="of the interval of a main figure")
    looks: int = Field(5, ge=1, description="points of each training that are scored")
    batch: int = Field(50, ge=1, description="images sampled at a time for scores")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of sampling, scored and timed")
    timing_batches: tuple[int, ...] = Field((1, 8, 64), description="images at a time that are timed")
    timing_rounds: int = Field(3, ge=1, description="times that each is timed, in turn; medians count")

    @model_validator(mode="after")
    def _check_families(self) -> ComparisonStudy:
        names = [family.name for family in self.families]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"families {names}: expected at least two, with different names")
        if len({family.prior.data.validation_share for family in self.families}) > 1:
            raise ValueError("families hold out different shares: give all the same data.validation_share")
        if not self.timing_batches or min(self.timing_batches) < 1:
            raise ValueError(f"timing_batches {list(self.timing_batches)}: expected numbers from 1")
        return self
