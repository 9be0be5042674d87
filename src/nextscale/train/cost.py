"""How much a pass computes: multiply-adds of one image, from the settings alone. No torch here.

Letters: S scales, L tokens of all scales, T tokens of one scale, V codes, C width of a code, D model width, h
w cells.
Special here: matrices, kernels and attention count; norms, activations, softmax and resizing do not (some
per cent of the time, none of these numbers). A multiply-add is two floating-point operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nextscale.prior.cost import Cost, cost
from nextscale.prior.settings import AnyPriorSettings, DiffusionSettings, TransformerSettings
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.settings import AutoencoderSettings, QuantizerSettings, TokenizerSettings

#: A backward pass computes twice what a forward pass does: gradients of inputs and of weights.
BACKWARD = 2


@dataclass(frozen=True)
class Part:
    """A convolution or a residual or attention block of the autoencoder, at one resolution."""

    kind: Literal["conv", "down", "head", "residual", "attention"]  #: a head is norm, SiLU and convolution
    dim_in: int
    dim_out: int
    num_cells: int  #: of its output; down has four times as many in its input

    @property
    def multiply_adds(self) -> int:
        """Of one image."""
        dim_in, dim, cells = self.dim_in, self.dim_out, self.num_cells
        if not self.is_block:
            return 9 * dim_in * dim * cells
        if self.kind == "attention":  # query, key, value and output; then all cells with all
            return 4 * dim * dim * cells + 2 * dim * cells * cells
        shortcut = dim_in * dim if dim_in != dim else 0
        return (9 * dim_in * dim + 9 * dim * dim + shortcut) * cells

    @property
    def is_block(self) -> bool:
        """Whether ``recompute`` acts on it."""
        return self.kind in ("residual", "attention")

    @property
    def computed_again(self) -> int:
        """Multiply-adds of its second forward pass, which ends before the last convolution of a block."""
        if not self.is_block:
            return 0
        if self.kind == "residual":
            return 9 * self.dim_in * self.dim_out * self.num_cells
        return self.multiply_adds - self.dim_out**2 * self.num_cells


def encoder_parts(settings: TokenizerSettings, schedule: ScaleSchedule) -> Iterator[Part]:
    """What an image passes through on its way to features, in order."""
    auto, code_dim = settings.autoencoder, settings.quantizer.code_dim
    cells, dims = _cells(auto, schedule), _dims(auto)
    yield Part("conv", 3, auto.base_dim, cells[0])
    before = auto.base_dim
    for level, dim in enumerate(dims):
        last = level == len(dims) - 1
        for _ in range(auto.num_res_blocks):
            yield Part("residual", before, dim, cells[level])
            before = dim
            if last and auto.attention:
                yield Part("attention", dim, dim, cells[level])
        if not last:
            yield Part("down", dim, dim, cells[level + 1])
    yield from _middle(auto, dims[-1], cells[-1])
    yield Part("head", dims[-1], code_dim, cells[-1])
    yield Part("conv", code_dim, code_dim, cells[-1])


def decoder_parts(settings: TokenizerSettings, schedule: ScaleSchedule) -> Iterator[Part]:
    """What features pass through on their way to an image, in order."""
    auto, code_dim = settings.autoencoder, settings.quantizer.code_dim
    cells, dims = _cells(auto, schedule), _dims(auto)
    yield Part("conv", code_dim, code_dim, cells[-1])
    yield Part("conv", code_dim, dims[-1], cells[-1])
    yield from _middle(auto, dims[-1], cells[-1])
    before = dims[-1]
    for level in reversed(range(len(dims))):
        dim, lowest = dims[level], level == len(dims) - 1
        for _ in range(auto.num_res_blocks + 1):
            yield Part("residual", before, dim, cells[level])
            before = dim
            if lowest and auto.attention:
                yield Part("attention", dim, dim, cells[level])
        if level:
            yield Part("conv", dim, dim, cells[level - 1])
    yield Part("head", dims[0], 3, cells[0])


def _middle(auto: AutoencoderSettings, dim: int, cells: int) -> Iterator[Part]:
    yield Part("residual", dim, dim, cells)
    if auto.attention:
        yield Part("attention", dim, dim, cells)
    yield Part("residual", dim, dim, cells)


def _dims(auto: AutoencoderSettings) -> list[int]:
    return [auto.base_dim * multiplier for multiplier in auto.multipliers]


def _cells(auto: AutoencoderSettings, schedule: ScaleSchedule) -> list[int]:
    """Cells of each level, full resolution first."""
    latent = schedule.num_cells[-1]
    return [int(latent * (auto.reduction // 2**level) ** 2) for level in range(len(auto.multipliers))]


def phis(quantizer: QuantizerSettings, schedule: ScaleSchedule) -> int:
    """Multiply-adds of the smoothing convolutions of all scales."""
    return schedule.num_scales * 9 * quantizer.code_dim**2 * schedule.num_cells[-1]


def encode(settings: TokenizerSettings, schedule: ScaleSchedule) -> int:
    """Multiply-adds from an image to its tokens."""
    quantizer = settings.quantizer
    network = sum(part.multiply_adds for part in encoder_parts(settings, schedule))
    return network + _search(quantizer, schedule) + phis(quantizer, schedule)


def _search(quantizer: QuantizerSettings, schedule: ScaleSchedule) -> int:
    """Multiply-adds of comparing all features with all codes."""
    return schedule.num_tokens * quantizer.vocab_size * quantizer.code_dim


def decode(settings: TokenizerSettings, schedule: ScaleSchedule) -> int:
    """Multiply-adds from tokens to the image."""
    network = sum(part.multiply_adds for part in decoder_parts(settings, schedule))
    return network + phis(settings.quantizer, schedule)


def block_weights(prior: TransformerSettings) -> int:
    """Weights in the matrices of one block that every token meets."""
    return round((4 + 2 * prior.mlp_ratio) * prior.width**2)


def prior_pass(prior: AnyPriorSettings, schedule: ScaleSchedule, quantizer: QuantizerSettings) -> int:
    """Multiply-adds of one forward pass over the whole sequence of one image, without guidance.

    Training computes all scales at once, sampling one by one with a cache: the same number.
    """
    return _of_prior(prior, schedule, quantizer).forward_flops // 2


def _of_prior(prior: AnyPriorSettings, schedule: ScaleSchedule, quantizer: QuantizerSettings) -> Cost:
    return cost(  # the number of classes is one of parameters, not of operations
        prior, schedule, vocab_size=quantizer.vocab_size, code_dim=quantizer.code_dim, num_classes=1
    )


def prior_training(
    prior: AnyPriorSettings, schedule: ScaleSchedule, tokenizer: TokenizerSettings, *, recompute: bool,
    kept_tokens: bool,
) -> int:  # fmt: skip
    """Multiply-adds per image of a prior's training step.

    Args:
        prior: its sizes.
        schedule: the scales.
        tokenizer: the frozen one.
        recompute: the blocks compute their forward pass twice.
        kept_tokens: images need no encoding.
    """
    found = _of_prior(prior, schedule, tokenizer.quantizer)
    passes = found.forward_flops // 2 * (1 + BACKWARD) + recompute * found.block_flops // 2
    if isinstance(prior, DiffusionSettings):  # reads features, not tokens
        return passes + sum(part.multiply_adds for part in encoder_parts(tokenizer, schedule))
    return passes + phis(tokenizer.quantizer, schedule) + (0 if kept_tokens else encode(tokenizer, schedule))


def tokenizer_training(settings: TokenizerSettings, schedule: ScaleSchedule, *, recompute: bool) -> int:
    """Multiply-adds per image of a tokenizer's training step, without perceptual network and discriminator.

    The search for the nearest codes has no backward pass.
    """
    parts = [*encoder_parts(settings, schedule), *decoder_parts(settings, schedule)]
    smooth = phis(settings.quantizer, schedule)
    trained = sum(part.multiply_adds for part in parts) + smooth
    again = sum(part.computed_again for part in parts) if recompute else 0
    return trained * (1 + BACKWARD) + again + _search(settings.quantizer, schedule)


def generation(
    prior: AnyPriorSettings, schedule: ScaleSchedule, tokenizer: TokenizerSettings, *, guided: bool
) -> int:
    """Multiply-adds of making one image: both branches of guidance, then the decoder."""
    return (1 + guided) * prior_pass(prior, schedule, tokenizer.quantizer) + decode(tokenizer, schedule)
