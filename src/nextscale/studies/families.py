"""What a comparison trains: families with equally many weights, and equal arithmetic in the training of their
priors.

Special here: the number of steps follows from the arithmetic of one image (`nextscale.prior.cost`). The
tokenizers are stated apart, as is the encoding by the frozen ones: they are measured by counting the products
of one image; three forward passes for each image in training, discriminators and perceptual networks left
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nextscale.data.sources import Source, hold_out, open_source
from nextscale.generate.folder import build_prior, load_tokenizer, read_settings
from nextscale.generate.settings import ModelSettings
from nextscale.models import find_model
from nextscale.prior.cost import Cost, cost
from nextscale.studies.runs import Voice, train_once
from nextscale.studies.settings import ComparisonStudy, Family
from nextscale.tokenizer.model import Tokenizer
from nextscale.train.run import settings_that_decide
from nextscale.train.settings import PriorRun, TokenizerRun

_TOLERANCE = 0.05  #: by which numbers of parameters may differ


@dataclass(frozen=True)
class Plan:
    """One family, ready to be trained."""

    family: Family
    tokenizer: TokenizerRun | None  #: None: it is given
    prior: PriorRun
    model: ModelSettings  #: as the finished model will be
    cost: Cost  #: of the prior
    encode_flops: int  #: of the tokenizer, one image
    decode_flops: int
    num_encodings: int  #: images that the frozen tokenizer encodes for the prior

    @property
    def name(self) -> str:
        """Of the family."""
        return self.family.name

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        height, width = self.model.schedule.latent_size
        reduction = self.model.tokenizer.autoencoder.reduction
        return height * reduction, width * reduction

    @property
    def images(self) -> int:
        """Seen by the prior."""
        return self.prior.loop.num_steps * self.prior.loop.batch_size

    @property
    def prior_flops(self) -> int:
        """Of the whole training of the prior."""
        return self.cost.training_flops * self.images

    @property
    def tokenizer_flops(self) -> int | None:
        """Of the tokenizer's training; None: it is given, and nothing is known of it."""
        if self.tokenizer is None:
            return None
        loop = self.tokenizer.loop
        return 3 * (self.encode_flops + self.decode_flops) * loop.num_steps * loop.batch_size

    @property
    def encoding_flops(self) -> int:
        """Of the frozen tokenizer while the prior trains."""
        return self.encode_flops * self.num_encodings


def study_images(study: ComparisonStudy) -> tuple[Source, Source]:
    """What all families train on, and what none sees in training.

    Raises ValueError when there is nothing, or fewer than two images to hold reconstructions against.
    """
    source = open_source(study.data.source)
    if study.data.validation:
        parts = source, open_source(study.data.validation)
    else:
        parts = hold_out(source, study.families[0].prior.data.validation_share)
    if (count := len(parts[1].labels)) < 2:
        raise ValueError(
            f"{count} validation images: reconstructions are held against at least 2; give data.validation, "
            "or a larger data.validation_share to all families"
        )
    return parts


def plan_families(study: ComparisonStudy, folder: Path) -> list[Plan]:
    """Everything that can be known and refused before anything is trained.

    Args:
        study: what is compared.
        folder: of the study.

    Raises:
        ValueError: parts that do not fit, sizes of images that differ, or numbers of parameters that differ
            by more than 5 %.
    """
    source = study_images(study)[0]
    plans: list[Plan] = []
    for family in study.families:
        budget = plans[0].prior_flops if plans else None
        try:
            plans.append(_plan(family, study, folder, source=source, budget=budget))
        except ValueError as error:
            raise ValueError(f"family {family.name}: {error}") from error
    counts = {plan.name: plan.cost.parameters for plan in plans}
    if max(counts.values()) > (1 + _TOLERANCE) * min(counts.values()):
        told = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        raise ValueError(
            f"the priors have different numbers of parameters ({told}): bring them within {_TOLERANCE:.0%}, "
            "for example by prior.prior.mlp_ratio"
        )
    sizes = {plan.name: plan.image_size for plan in plans}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the families make images of different sizes: {sizes}; give tokenizers of one size")
    return plans


def _plan(
    family: Family, study: ComparisonStudy, folder: Path, *, source: Source, budget: int | None
) -> Plan:
    run, tokenizer_from = family.tokenizer, family.prior.tokenizer_from
    if run is None:
        home = find_model(tokenizer_from)
        base = read_settings(home)
        tokenizer = load_tokenizer(home, base)
    else:
        first = next(other for other in study.families if other.tokenizer == run)
        tokenizer_from = str(folder / "tokenizers" / first.name / "model")
        base = ModelSettings(schedule=run.schedule, tokenizer=run.tokenizer)
        tokenizer = Tokenizer(run.tokenizer, run.schedule)
        run = run.model_copy(update={"data": _data(run, study)})
    model = base.model_copy(
        update={"prior": family.prior.prior, "class_names": source.class_names}
        | {"sampling": family.prior.sampling}
    )
    with torch.device("meta"):
        build_prior(model)
    quantizer = base.tokenizer.quantizer
    for sampling in family.samplings:
        if (sampling.top_k or 0) > quantizer.vocab_size:
            raise ValueError(f"sampling {sampling.name}: top_k {sampling.top_k} exceeds the codes")
    of_prior = cost(
        family.prior.prior, base.schedule, vocab_size=quantizer.vocab_size, code_dim=quantizer.code_dim,
        num_classes=len(source.class_names),
    )  # fmt: skip
    prior = _prior_run(family, study, tokenizer_from, of_prior, budget=budget)
    encode_flops, decode_flops = count_tokenizer(tokenizer)
    views = prior.cache_views * len(source.labels)
    return Plan(
        family, run, prior, model, of_prior, encode_flops, decode_flops,
        num_encodings=views or prior.loop.num_steps * prior.loop.batch_size,
    )  # fmt: skip


def _data(run: TokenizerRun | PriorRun, study: ComparisonStudy) -> Any:
    return run.data.model_copy(update={"source": study.data.source, "validation": study.data.validation})


def _prior_run(
    family: Family, study: ComparisonStudy, tokenizer_from: str, of_prior: Cost, *, budget: int | None
) -> PriorRun:
    """The prior's run with its steps, and with checkpoints at the points that are scored and between them."""
    run = family.prior
    num_steps = run.loop.num_steps
    if budget is not None:
        num_steps = steps_for(budget, of_prior, batch_size=run.loop.batch_size)
    if study.checkpoint == "best" and run.loop.evaluate_every >= num_steps:
        raise ValueError(
            f"checkpoint best, but of {num_steps} steps none is evaluated: lower prior.loop.evaluate_every"
        )
    save_every = -(-num_steps // (2 * study.looks))
    loop = {"num_steps": num_steps, "save_every": save_every, "keep": 2 * study.looks + 1}
    return run.model_copy(
        update={
            "tokenizer_from": tokenizer_from, "data": _data(run, study),
            "loop": run.loop.model_copy(update=loop),
        }
    )  # fmt: skip


def steps_for(budget: int, of_prior: Cost, *, batch_size: int) -> int:
    """The number of steps that comes nearest to a budget of training FLOPs, at least one."""
    return max(1, round(budget / (of_prior.training_flops * batch_size)))


@torch.no_grad()
def count_tokenizer(tokenizer: Tokenizer) -> tuple[int, int]:
    """FLOPs of encoding and of decoding one image, counted while doing it."""
    images_BCHW = torch.zeros(1, 3, *tokenizer.image_size)
    with sdpa_kernel(SDPBackend.MATH):  # the counter knows attention as products alone
        with FlopCounterMode(display=False) as encoding:
            tokens_BL = tokenizer.eval().encode(images_BCHW)
        with FlopCounterMode(display=False) as decoding:
            tokenizer.decode(tokens_BL)
    return encoding.get_total_flops(), decoding.get_total_flops()


def describe_families(plans: Sequence[Plan]) -> list[str]:
    """A line per family, for people."""
    lines = []
    for plan in plans:
        of_tokenizer = plan.tokenizer_flops
        told = "given" if of_tokenizer is None else f"{of_tokenizer:.3g} FLOPs"
        lines.append(
            f"{plan.name}: {plan.cost.parameters:,} parameters, {plan.prior.loop.num_steps:,} steps, "
            f"{plan.prior_flops:.3g} FLOPs of training; tokenizer {told}, "
            f"encoding {plan.encoding_flops:.3g} FLOPs"
        )
    return lines


def train_tokenizer(plan: Plan, voice: Voice) -> None:
    """Train the tokenizer of a family, unless it is given or finished."""
    if plan.tokenizer is not None:
        place = Path(plan.prior.tokenizer_from).parent
        train_once(plan.tokenizer, place, line=f"tokenizer of {plan.name}", voice=voice)


def train_prior(plan: Plan, folder: Path, voice: Voice) -> None:
    """Train the prior of a family in the study's folder, unless it is finished."""
    train_once(plan.prior, folder / "priors" / plan.name, line=f"prior of {plan.name}", voice=voice)


def description(study: ComparisonStudy) -> dict[str, Any]:
    """What must stay the same in a study's folder; ways to sample, numbers of samples, times may change."""
    families = {
        family.name: {
            name: settings_that_decide(run)
            for name, run in (("tokenizer", family.tokenizer), ("prior", family.prior))
            if run is not None
        }
        for family in study.families
    }
    kept = study.model_dump(mode="json", include={"data", "features", "weights", "looks"})
    return {"study": "compare", "families": families, **kept}


def looks(plan: Plan, count: int) -> list[int]:
    """The steps at which a training is scored, the last one included: all but it have a checkpoint."""
    loop = plan.prior.loop
    steps = {2 * number * loop.save_every for number in range(1, count)}
    return sorted({step for step in steps if step < loop.num_steps} | {loop.num_steps})
