"""What a piece of work asks of a machine: operations and bytes that no way of doing it can avoid. No torch
here.

Letters: B batch, S scales, L tokens of all scales, T tokens of one scale, V codes, C width of a code, D model
width.
Special here: of memory, weights are read once per pass (all of them: they do not fit a cache), keys and
values of the prefix once, logits written once, and between the layers of the autoencoder every map is written
and read once; what a transformer hands from layer to layer is taken to stay in a cache. Rates of machines are
measured, work is counted: their quotient is the limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from nextscale.prior.cost import cost
from nextscale.prior.settings import AnyPriorSettings, DiffusionSettings, NextTokenSettings
from nextscale.scales import ScaleSchedule
from nextscale.studies.bench.settings import WORD
from nextscale.tokenizer.settings import QuantizerSettings, TokenizerSettings
from nextscale.train.cost import Part, block_weights, decoder_parts, encoder_parts, phis, prior_training
from nextscale.train.memory import prior_activations


class Pass(NamedTuple):
    """Work between two moments at which everything waits for it."""

    flops: int
    num_bytes: int
    dtype: str  #: whose rate of matrix products counts


class Limits(NamedTuple):
    """What a machine can do, as measured."""

    flops: Mapping[str, float]  #: operations of matrix products per second, per dtype
    copy: float  #: bytes read or written per second

    def seconds(self, passes: Iterable[Pass]) -> float:
        """The larger of the time for all operations and the time for all bytes."""
        given = list(passes)
        compute = sum(item.flops / self.flops[item.dtype] for item in given)
        return max(compute, sum(item.num_bytes for item in given) / self.copy)

    def seconds_by_pass(self, passes: Iterable[Pass]) -> float:
        """The sum of the larger of both over the passes: nearer to the truth, as one waits for the other."""
        return sum(max(item.flops / self.flops[item.dtype], item.num_bytes / self.copy) for item in passes)


def transformer_passes(
    prior: AnyPriorSettings, schedule: ScaleSchedule, quantizer: QuantizerSettings, *, batch: int,
    guided: bool, dtype: str, num_steps: int = 1,
) -> list[Pass]:  # fmt: skip
    """Of a prior that makes ``batch`` images: a pass per scale, per token, or per step of diffusion.

    Args:
        prior: its sizes.
        schedule: of its tokenizer.
        quantizer: of its tokenizer.
        batch: images at a time.
        guided: whether there are two branches.
        dtype: of weights, keys and values.
        num_steps: of diffusion.
    """
    rows, word = batch * (1 + guided), WORD[dtype]
    weights = prior.depth * block_weights(prior)
    modulation = (1 if prior.shared_adaln else prior.depth) * 6 * prior.width**2 + 2 * prior.width**2
    a_token = 2 * prior.depth * prior.width  # its key and value in every block
    if isinstance(prior, DiffusionSettings):
        flops = _pass_flops(prior, schedule, quantizer)
        one = Pass(flops * rows, (weights + modulation) * word, dtype)
        return [one] * num_steps
    head = quantizer.vocab_size * prior.width
    if isinstance(prior, NextTokenSettings):
        total, flops = schedule.num_tokens, _pass_flops(prior, schedule, quantizer)
        counts, steps = [1] * total, [flops // total] * total
    else:
        counts, steps = list(schedule.num_cells), scale_flops(prior, schedule, quantizer)
    passes, done = [], 0
    for number, (count, flops) in enumerate(zip(counts, steps, strict=True)):
        done += count
        words = weights + head + (0 if number else modulation) + rows * a_token * done
        passes.append(Pass(rows * flops, words * word + rows * count * quantizer.vocab_size * 4, dtype))
    return passes


def scale_flops(
    prior: AnyPriorSettings, schedule: ScaleSchedule, quantizer: QuantizerSettings
) -> list[int]:  # fmt: skip
    """Operations of one image at each scale, modulations at the first: the sum is that of a whole pass."""
    sums = [
        _pass_flops(prior, ScaleSchedule(sizes=schedule.sizes[:end]), quantizer)
        for end in range(1, schedule.num_scales + 1)
    ]
    return [after - before for before, after in zip([0, *sums], sums, strict=False)]


def _pass_flops(prior: AnyPriorSettings, schedule: ScaleSchedule, quantizer: QuantizerSettings) -> int:
    return cost(
        prior, schedule, vocab_size=quantizer.vocab_size, code_dim=quantizer.code_dim, num_classes=1
    ).forward_flops


def quantizer_pass(settings: QuantizerSettings, schedule: ScaleSchedule, *, batch: int) -> Pass:
    """Of putting the scales of ``batch`` images together, in float32: the smoothing, and a map per scale that
    is read and written.
    """
    numbers = 2 * schedule.num_scales * settings.code_dim * schedule.num_cells[-1]
    return Pass(2 * phis(settings, schedule) * batch, 4 * numbers * batch, "float32")


def decoder_pass(settings: TokenizerSettings, schedule: ScaleSchedule, *, batch: int, dtype: str) -> Pass:
    """Of the decoder."""
    return _convolutions(decoder_parts(settings, schedule), batch=batch, dtype=dtype)


def encoder_pass(settings: TokenizerSettings, schedule: ScaleSchedule, *, batch: int, dtype: str) -> Pass:
    """Of the encoder."""
    return _convolutions(encoder_parts(settings, schedule), batch=batch, dtype=dtype)


def search_pass(settings: QuantizerSettings, schedule: ScaleSchedule, *, batch: int) -> Pass:
    """Of finding the codes of ``batch`` images in float32: all features against all codes, and smoothing."""
    search = 2 * schedule.num_tokens * settings.vocab_size * settings.code_dim
    smooth = quantizer_pass(settings, schedule, batch=batch)
    codes = 4 * settings.vocab_size * settings.code_dim * schedule.num_scales
    return Pass(search * batch + smooth.flops, codes + smooth.num_bytes, "float32")


def _convolutions(parts: Iterable[Part], *, batch: int, dtype: str) -> Pass:
    flops = maps = weights = 0
    for part in parts:
        flops += 2 * part.multiply_adds
        maps += (part.dim_in * (4 if part.kind == "down" else 1) + part.dim_out) * part.num_cells
        weights += (4 if part.kind == "attention" else 9) * part.dim_in * part.dim_out
        weights += 9 * part.dim_out**2 if part.kind == "residual" else 0
    return Pass(flops * batch, (maps * batch + weights) * WORD[dtype], dtype)


def training_pass(
    prior: AnyPriorSettings, schedule: ScaleSchedule, tokenizer: TokenizerSettings, *, batch: int,
    dtype: str, num_parameters: int,
) -> Pass:  # fmt: skip
    """Of one step from kept tokens: forward, backward, AdamW. Weights are read three times, in the optimizer
    they, gradient and both averages are read and all but the gradient written; what autograd keeps is written
    and read.
    """
    flops = 2 * prior_training(prior, schedule, tokenizer, recompute=False, kept_tokens=True) * batch
    kept = prior_activations(
        prior, schedule, tokenizer.quantizer, recompute=False,
        precision="bfloat16" if dtype == "bfloat16" else "float32",
    )  # fmt: skip
    return Pass(flops, num_parameters * (3 * WORD[dtype] + 7 * 4) + 2 * kept * batch, dtype)


def generation_parts(
    prior: AnyPriorSettings, schedule: ScaleSchedule, tokenizer: TokenizerSettings, *, batch: int,
    guided: bool, dtype: str,
) -> dict[str, list[Pass]]:  # fmt: skip
    """Of making images with a prior over tokens, by part; arguments as of `transformer_passes`."""
    transformer = transformer_passes(
        prior, schedule, tokenizer.quantizer, batch=batch, guided=guided, dtype=dtype
    )
    return {
        "transformer": transformer,
        "quantizer": [quantizer_pass(tokenizer.quantizer, schedule, batch=batch)],
        "decoder": [decoder_pass(tokenizer, schedule, batch=batch, dtype=dtype)],
    }
