"""What a caller asked for, checked and spread over the images of a batch.

Letters: B batch.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy
import torch
from torch import Tensor

from nextscale.generate.guidance import guidance_weights, num_guided_scales
from nextscale.generate.sampling import Draw
from nextscale.generate.settings import DEFAULT_STEPS, ModelSettings, SamplingSettings, refuse_idle
from nextscale.rng import check_seeds, token_uniforms

Label = int | str | None


class Sampling(TypedDict, total=False):
    """Sampling settings of one call: a value for all images, or one per image (not of the last two); None
    is the model's own.

    - guidance: classifier-free guidance, from 0 (off); next-scale: at the last scale.
    - top_k: draw among the k likeliest codes; 0 is off, 1 is greedy.
    - top_p: draw among the likeliest codes that hold this probability, in (0, 1]; 1 is off.
    - temperature: divides the logits, above 0.
    - num_unguided_scales: last scales without guidance, which then take half the work; 0 is none.
    - ssg: scaled spatial guidance, away from the coarser scale's logits, from 0 (off).
    - sampler: of diffusion, "ddim" or "ddpm".
    - num_steps: of diffusion, 1 to 1000.
    """

    guidance: float | Sequence[float] | None
    top_k: int | Sequence[int] | None
    top_p: float | Sequence[float] | None
    temperature: float | Sequence[float] | None
    num_unguided_scales: int | Sequence[int] | None
    ssg: float | Sequence[float] | None
    sampler: str | None
    num_steps: int | None


class Forced(NamedTuple):
    """Tokens that are given, not drawn."""

    tokens_BL: Tensor  #: int64
    kept_BL: Tensor  #: bool, which of them hold


class Request(NamedTuple):
    """One batch."""

    labels_B: Tensor  #: int64; the unconditional class is num_classes
    seeds: tuple[int, ...]
    guidance_B: Tensor  #: float32
    weights_SB: Tensor  #: float32, the guidance of each scale
    num_guided: int  #: scales that need the unconditional branch
    ssg_B: Tensor  #: float32
    sharpened: bool  #: whether any image has scaled spatial guidance
    draw: Draw
    smooth: bool
    sampler: str
    num_steps: int
    guided: bool  #: whether any image has guidance
    forced: Forced | None = None  #: of edits (next-scale only)

    def uniforms(self, num_tokens: int) -> Tensor:
        """The random numbers of every image's tokens, from its own seed: float64 (B, num_tokens)."""
        numbers = numpy.stack([token_uniforms(seed, num_tokens) for seed in self.seeds])
        return torch.from_numpy(numbers).to(self.labels_B.device)


def resolve_label(label: Label, class_names: Sequence[str]) -> int:
    """The number of a class given by number, name, or None for the unconditional class (number of classes).

    Raises:
        ValueError: no such class; says which there are.
    """
    count = len(class_names)
    if label is None:
        return count
    if isinstance(label, str):
        if label in class_names:
            return class_names.index(label)
        if not label.isdecimal():
            near = difflib.get_close_matches(label, class_names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown class {label!r}: this model knows {_some(class_names)}{hint}")
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, (int, numpy.integer)):
        raise ValueError(f"label {label!r} is neither the number of a class nor its name nor None")
    if not 0 <= label < count:
        raise ValueError(
            f"label {label} is out of range: this model knows 0 to {count - 1} ({_some(class_names)})"
        )
    return int(label)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def build_request(
    labels: Sequence[Label], seeds: Sequence[int], model: ModelSettings, *, overrides: Sampling, smooth: bool,
    device: torch.device,
) -> Request:  # fmt: skip
    """Check what was asked for.

    Args:
        labels: one per image.
        seeds: one per image, from 0 to 2**63 - 1.
        model: its classes, codes, scales, and its own sampling settings, used where ``overrides`` is None.
        overrides: a number for all images, or one per image.
        smooth: mix codes.
        device: of the tensors.

    Raises:
        ValueError: names the value that is wrong, and the range it should lie in.
    """
    if isinstance(labels, str) or isinstance(seeds, str):
        raise ValueError("labels and seeds are lists, for example labels=[3, 'frog'], seeds=[0, 1]")
    if len(labels) != len(seeds) or len(labels) == 0:  # arrays too
        raise ValueError(
            f"{len(labels)} labels and {len(seeds)} seeds: give one of each per image, at least one"
        )
    check_seeds(seeds)
    kind = model.prior.kind if model.prior else "next_scale"
    if smooth and kind != "next_scale":
        raise ValueError(
            f"smooth mixes the codes of a whole scale, the prior is of kind {kind}: leave it out"
        )
    count, chosen = len(labels), _chosen(model.sampling, overrides, kind)
    guidance = _spread("guidance", chosen["guidance"], count, low=0.0)
    vocab_size = model.tokenizer.quantizer.vocab_size
    top_k = _spread_whole("top_k", chosen["top_k"], count, high=vocab_size, ends="0 is off, 1 is greedy")
    top_p = _spread("top_p", chosen["top_p"], count, low=0.0, high=1.0, above=True)
    temperature = _spread("temperature", chosen["temperature"], count, low=0.0, above=True)
    unguided = _spread_whole(
        "num_unguided_scales", chosen["num_unguided_scales"], count, high=model.schedule.num_scales,
        ends="0 is none",
    )  # fmt: skip
    ssg = _spread("ssg", chosen["ssg"], count, low=0.0)
    sampler, num_steps = _denoising(chosen["sampler"], chosen["num_steps"])

    weights_SB = _weights(guidance, unguided, model.schedule.num_scales)
    return Request(
        labels_B=torch.tensor([resolve_label(label, model.class_names) for label in labels], device=device),
        seeds=tuple(int(seed) for seed in seeds),
        guidance_B=torch.tensor(guidance, dtype=torch.float32, device=device),
        weights_SB=weights_SB.to(device),
        num_guided=num_guided_scales(weights_SB),
        ssg_B=torch.tensor(ssg, dtype=torch.float32, device=device),
        sharpened=any(value > 0 for value in ssg),
        draw=Draw.of(top_k, top_p, temperature, device=device),
        smooth=smooth,
        sampler=sampler,
        num_steps=num_steps,
        guided=any(value > 0 for value in guidance),
    )


def _weights(guidance: list[float], unguided: list[int], num_scales: int) -> Tensor:
    """On the host, since they decide what is computed, and asking a GPU for a value means waiting for it."""
    guidance_B = torch.tensor(guidance, dtype=torch.float32)
    return guidance_weights(guidance_B, torch.tensor(unguided), num_scales)


def _denoising(sampler: str, num_steps: int | None) -> tuple[str, int]:
    """The checked way of denoising, and its steps."""
    if sampler not in DEFAULT_STEPS:
        raise ValueError(f"sampler {sampler!r} is unknown: expected ddim or ddpm")
    whole = num_steps is None or (isinstance(num_steps, (int, numpy.integer)) and 1 <= num_steps <= 1000)
    if not whole:
        raise ValueError(f"num_steps {num_steps!r} is out of range: expected a whole number from 1 to 1000")
    return sampler, int(num_steps or DEFAULT_STEPS[sampler])


def _chosen(own: SamplingSettings, overrides: Sampling, kind: str) -> dict[str, Any]:
    """The model's own settings, replaced by those that were given, which a prior of this kind must know."""
    known = own.model_dump()
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"unknown sampling setting {name!r}: expected {', '.join(known)}{hint}")
    given = {name: value for name, value in overrides.items() if value is not None}
    refuse_idle(kind, given)
    return {**known, **given}


def _spread_whole(
    name: str, given: int | Sequence[int], count: int, *, high: int, ends: str
) -> list[int]:  # fmt: skip
    """One checked whole number from 0 to ``high`` per image; ``ends`` says what the smallest do."""
    values = _spread(name, given, count, low=0, high=high)
    if any(value != int(value) for value in values):
        raise ValueError(f"{name} {values} must be whole numbers; {ends}")
    return [int(value) for value in values]


def _spread(
    name: str, given: float | Sequence[float], count: int, *, low: float, high: float = float("inf"),
    above: bool = False,
) -> list[float]:  # fmt: skip
    """One checked value per image; ``above`` excludes ``low`` itself."""
    values = [given] * count if isinstance(given, (int, float, numpy.number)) else list(given)
    if len(values) != count:
        raise ValueError(
            f"{len(values)} values of {name} for {count} images: give one for all, or one per image"
        )
    for value in values:
        if not (low < value if above else low <= value) or not value <= high or math.isinf(value):
            bound = f"more than {low:g}" if above else f"{low:g} or more"
            most = f"at most {high:g}" if math.isfinite(high) else "finite"
            raise ValueError(f"{name} {value!r} is out of range: expected {bound}, {most}")
    return values
