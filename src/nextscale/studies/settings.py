"""Settings of studies. No torch here."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nextscale.train.settings import PriorRun

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
