"""Settings of training: the loop, the optimizer, and the whole tree of each kind of run. No torch here."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nextscale.data.settings import DataSettings
from nextscale.features.settings import ClassifierSettings, PerceptualSettings
from nextscale.generate.settings import SamplingSettings
from nextscale.integrity.settings import LedgerSettings
from nextscale.prior.settings import AnyPriorSettings
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.settings import Precision, QuantizerSettings, TokenizerSettings
from nextscale.train.adversary_settings import DiscriminatorSettings

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class OptimizerSettings(BaseModel):
    """AdamW and its schedule: linear warm-up, a hold, then a fall to ``final_lr_ratio``."""

    model_config = _FROZEN
    base_lr: float = Field(1e-4, gt=0, description="learning rate per 256 images of a batch")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's averages")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(0.05, ge=0, description="on matrices and kernels only")
    final_weight_decay: float | None = Field(
        None, ge=0, description="where a cosine takes it; None: constant"
    )
    warmup_share: float = Field(0.02, ge=0, lt=1, description="share of the steps that warms up")
    warmup_start: float = Field(0.005, ge=0, le=1, description="first learning rate / peak")
    hold_share: float = Field(0.05, ge=0, lt=1, description="share of the later steps that stays at the peak")
    decay: Literal["linear", "cosine"] = Field("linear", description="how it falls after the hold")
    final_lr_ratio: float = Field(0.1, ge=0, le=1, description="last learning rate / peak")
    clip_norm: float = Field(2.0, gt=0, description="largest gradient norm")


class LoopSettings(BaseModel):
    """How long to train, and how often to look. Intervals are in steps."""

    model_config = _FROZEN
    batch_size: int = Field(64, ge=1, description="images per step")
    num_steps: int = Field(1000, ge=1, description="steps of the whole run; the schedule is laid over them")
    accumulate: int = Field(
        1, ge=1, description="parts of a batch that are worked off one after the other, their gradients added"
    )
    sharding: Literal["replicated", "full"] = Field(
        "replicated",
        description="what each of several processes holds: the whole model, or (full) a slice of each large "
        "weight, of its gradient and its averages; one process always holds all",
    )
    seed: int = Field(0, ge=0, description="of the initial weights and of every random choice")
    precision: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="of the forward pass; weights stay float32"
    )
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="averaging of what is shipped, at most (1 + step) / (10 + step)"
    )
    log_every: int = Field(50, ge=1, description="between records of the log")
    evaluate_every: int = Field(1000, ge=1, description="between evaluations and sample pictures")
    evaluate_images: int = Field(
        2000, ge=1, description="validation images per evaluation; the last one uses all"
    )
    save_every: int = Field(500, ge=1, description="between checkpoints")
    stop_after: int = Field(
        0, ge=0, description="end after this step with a checkpoint, to go on another time; 0: after the last"
    )
    keep: int = Field(2, ge=1, description="checkpoints to keep")
    patience: int = Field(
        0, ge=0, description="evaluations without a better score after which training ends; 0: never"
    )
    max_skipped: int = Field(
        10, ge=1, description="steps in a row without finite loss and gradient after which training fails"
    )

    @model_validator(mode="after")
    def _check_parts(self) -> LoopSettings:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be cut into accumulate {self.accumulate} equal parts"
            )
        return self


class ReconstructionLosses(BaseModel):
    """Weights of what is lost by reconstructions."""

    model_config = _FROZEN
    l1: float = Field(0.2, ge=0, description="mean absolute error of pixels")
    l2: float = Field(1.0, ge=0, description="mean squared error of pixels")
    perceptual: float = Field(0.0, ge=0, description="distance of what a network sees; 0 is off")
    adversarial: float = Field(0.0, ge=0, description="what a discriminator tells apart; 0 is off")


class TokenizerLosses(ReconstructionLosses):
    """Weights of the tokenizer's losses."""

    codebook: float = Field(1.0, ge=0, description="codes towards features")
    commitment: float = Field(0.25, ge=0, description="features towards codes")
    reset_after: int = Field(
        50, ge=0, description="steps without use after which a code is put elsewhere; 0: never"
    )


class CodeTraining(BaseModel):
    """How codes are learned, and how the decoder's wishes reach the encoder past them."""

    model_config = _FROZEN
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="codes become running means of what they stand for; 0: by gradient"
    )
    gradient: Literal["straight_through", "rotation"] = Field(
        "straight_through", description="how gradients pass the codes"
    )
    scale_dropout: float = Field(
        0.0, ge=0, le=1, description="share of training samples that stop at a random earlier scale"
    )


class TokenizerRun(BaseModel):
    """Everything that decides a tokenizer training."""

    model_config = _FROZEN
    schedule: ScaleSchedule
    tokenizer: TokenizerSettings
    init: str = Field("", description="model whose weights to start from: a folder or a bundled name")
    data: DataSettings = DataSettings()
    losses: TokenizerLosses = TokenizerLosses()
    codes: CodeTraining = CodeTraining()
    perceptual: PerceptualSettings = PerceptualSettings()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    recompute: bool = Field(
        False, description="save memory: compute the inside of each block again in the backward pass"
    )
    optimizer: OptimizerSettings = OptimizerSettings()
    loop: LoopSettings = LoopSettings()
    ledger: LedgerSettings = LedgerSettings()

    @model_validator(mode="after")
    def _check_scales(self) -> TokenizerRun:
        _check_adversary(self.discriminator, self.losses)
        if self.codes.scale_dropout and self.schedule.num_scales == 1:
            raise ValueError(
                "codes.scale_dropout stops samples at an earlier scale, but the schedule has one scale only: "
                "set it to 0, or give more scales"
            )
        _check_phis(self.tokenizer.quantizer, self.schedule, init=self.init)
        return self


def _check_adversary(discriminator: DiscriminatorSettings, losses: ReconstructionLosses) -> None:
    if discriminator.dino_weights and not losses.adversarial:
        raise ValueError(
            "discriminator.dino_weights would have no effect with losses.adversarial 0: set that above "
            "0, or leave it out"
        )


def _check_phis(quantizer: QuantizerSettings, schedule: ScaleSchedule, *, init: str) -> None:
    """Refuse convolutions that no scale uses; a model to start from may have some, as published ones do."""
    num_phis, num_scales = quantizer.num_phis, schedule.num_scales
    used = quantizer.phi_of_scale or schedule.phi_of_scale(num_phis or num_scales)
    if init or len(set(used)) >= num_phis:
        return
    if quantizer.phi_of_scale:
        raise ValueError(
            f"tokenizer.quantizer.phi_of_scale {list(used)} uses {len(set(used))} of num_phis {num_phis}: "
            "the others would never be trained; name all of them, or give fewer"
        )
    most = max(n for n in range(1, num_phis + 1) if len(set(schedule.phi_of_scale(n))) == n)
    raise ValueError(
        f"tokenizer.quantizer.num_phis {num_phis} is too many: {num_scales} scales would use "
        f"{len(set(used))} of them, the others would never be trained; give at most {most}"
    )


class PriorRun(BaseModel):
    """Everything that decides the training of a prior."""

    model_config = _FROZEN
    tokenizer_from: str = Field(
        "", description="model folder that holds the tokenizer, as train tokenizer leaves it; empty: init"
    )
    prior: AnyPriorSettings
    init: str = Field("", description="model whose weights to start from: a folder or a bundled name")
    data: DataSettings = DataSettings()
    scale_weights: tuple[float, ...] = Field(
        (), description="weight of each scale's tokens in the loss; empty: every token counts the same"
    )
    recompute: bool = Field(
        False, description="save memory: compute the inside of each block again in the backward pass"
    )
    compile: bool = Field(
        False, description="compile the blocks: takes half a minute, then GPUs run fewer and longer kernels"
    )
    encode_precision: Precision = Field(
        "float32", description="of the frozen encoder: bfloat16 is faster and changes some tokens"
    )
    cache_views: int = Field(
        0, ge=0, description="crops of every image to tokenize before the first step; 0: at every step"
    )
    tokens_from: str = Field(
        "", description="folder of tokens, as tokenize leaves it; empty: tokenize data.source"
    )
    optimizer: OptimizerSettings = OptimizerSettings()
    loop: LoopSettings = LoopSettings()
    ledger: LedgerSettings = LedgerSettings()
    sampling: SamplingSettings = SamplingSettings()

    @model_validator(mode="after")
    def _check_family(self) -> PriorRun:
        kind = self.prior.kind
        self.sampling.refuse_idle(kind)
        idle: dict[str, object] = {} if kind == "next_scale" else {"scale_weights": list(self.scale_weights)}
        if kind == "diffusion":
            idle |= {"cache_views": self.cache_views, "tokens_from": self.tokens_from}
        for name, value in idle.items():
            if value:
                raise ValueError(
                    f"{name} {value} would have no effect: the prior is of kind {kind}; leave it out"
                )
        if self.compile and self.loop.sharding == "full":
            raise ValueError("compile true with loop.sharding full has not been made to work: choose one")
        return self

    @model_validator(mode="after")
    def _check_cache(self) -> PriorRun:
        if self.cache_views > 1 and not self.data.flip and self.data.enlarge == 1:
            raise ValueError(
                f"cache_views {self.cache_views} without data.flip and with data.enlarge 1 would keep the "
                "same center crop several times: set cache_views 1, data.flip true, or data.enlarge above 1"
            )
        if not self.tokens_from:
            return self
        idle = {
            "cache_views": self.cache_views,
            "data.num_workers": self.data.num_workers,
            "data.source": self.data.validation and self.data.source,
        }
        for name, value in idle.items():
            if value:
                raise ValueError(
                    f"{name} {value} would have no effect, since tokens_from gives the tokens: leave it out, "
                    f"or, where the recipe has it, set it to {type(value)()!r}"
                )
        return self


class ClassifierRun(BaseModel):
    """Everything that decides the training of the classifier."""

    model_config = _FROZEN
    classifier: ClassifierSettings
    data: DataSettings = DataSettings()
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="probability given to the other classes")
    max_shift: int = Field(2, ge=0, description="largest random shift of an image, in pixels")
    cut_out: int = Field(8, ge=0, description="side of the square that is painted gray, in pixels")
    optimizer: OptimizerSettings = OptimizerSettings()
    loop: LoopSettings = LoopSettings()
    ledger: LedgerSettings = LedgerSettings()

    @model_validator(mode="after")
    def _check_sharding(self) -> ClassifierRun:
        if self.loop.sharding != "replicated":
            raise ValueError(
                f"loop.sharding {self.loop.sharding} would have no effect, since the classifier trains in "
                "one process: leave it out"
            )
        return self


class DecoderRun(BaseModel):
    """Everything that decides the tuning of a decoder on what the prior draws."""

    model_config = _FROZEN
    init: str = Field("", description="model with a prior whose decoder is tuned: a folder or a bundled name")
    drawn_share: float = Field(
        0.5, ge=0, le=1, description="share of training samples of which the prior draws the last scales"
    )
    drawn_scales: int = Field(1, ge=1, description="how many last scales it draws; coarser ones are real")
    data: DataSettings = DataSettings()
    losses: ReconstructionLosses = ReconstructionLosses()
    perceptual: PerceptualSettings = PerceptualSettings()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    loop: LoopSettings = LoopSettings()
    ledger: LedgerSettings = LedgerSettings()

    @model_validator(mode="after")
    def _check_discriminator(self) -> DecoderRun:
        _check_adversary(self.discriminator, self.losses)
        return self


#: Any of them.
AnyRun: TypeAlias = TokenizerRun | PriorRun | DecoderRun | ClassifierRun
