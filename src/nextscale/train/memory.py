"""How much memory a training takes, in bytes of one process, from the settings alone. No torch here.

Letters: L tokens of all scales, V codes, D model width, r hidden width of an MLP / D.
Special here: what autograd keeps is written down operation by operation, as autocast leaves it; the tests
count the same on real passes. All parts are added up although not all of them exist at the same time (a
gradient is made when its activations are gone), so the sum is too high rather than too low - but for what
allocators and kernels take on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from nextscale.prior.settings import MOST_MASKED, TransformerSettings
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.settings import QuantizerSettings, TokenizerSettings
from nextscale.train.cost import Part, block_weights, decoder_parts, encoder_parts

Precision = Literal["float32", "bfloat16"]
#: Weights, their gradients and all averages are float32.
_WORD = 4


@dataclass(frozen=True)
class Memory:
    """Bytes of one process."""

    weights: int
    gradients: int
    moments: int  #: AdamW's two averages
    average: int  #: the averaged weights
    frozen: int  #: the tokenizer of a prior's training
    copies: int  #: of weights in bfloat16, or of the blocks that sharding gathers
    activations: int  #: what autograd keeps, and what making tokens takes

    @property
    def total(self) -> int:
        """Their sum."""
        kept = self.weights + self.gradients + self.moments + self.average
        return kept + self.frozen + self.copies + self.activations


def prior_block_bytes(
    prior: TransformerSettings, schedule: ScaleSchedule, *, precision: Precision, on_cpu: bool
) -> float:
    """What autograd keeps of one block for one image."""
    hidden, unit = 2 * prior.mlp_ratio, prior.unit_qk  # before and after GELU
    if precision == "float32":
        # both norms' inputs and outputs, three inputs of linear layers, query, key and value, what attention
        # and MLP add, attention's output; the MLP; with unit lengths two more queries and one more key
        numbers = _WORD * (4 + 3 + 3 + 2 + 1 + hidden + 3 * unit)
    else:
        # the norms work in float32, everything else in bfloat16
        numbers = _WORD * 4 + 2 * (3 + 3 + 2 + hidden + unit)
        # where attention is in float32: queries, keys, values and outputs once more
        exact = _float32_share(schedule) if on_cpu else 0
        numbers += exact * (_WORD * 4 - (0 if unit else 2 * 3)) + (1 - exact) * 2 * (1 + 2 * unit)
        if 0 < exact < 1:  # and for the last scale once more as they are
            numbers += exact * (4 if unit else 6)
    return numbers * prior.width * schedule.num_tokens


def _float32_share(schedule: ScaleSchedule) -> float:
    """Of the tokens, those whose attention CPUs train in float32: see `nextscale.prior.layers.attend_to`."""
    few = [offset for offset in schedule.offsets[-2:] if offset <= MOST_MASKED]
    return max(few, default=0) / schedule.num_tokens


def prior_activations(
    prior: TransformerSettings, schedule: ScaleSchedule, quantizer: QuantizerSettings, *,
    precision: Precision, recompute: bool, on_cpu: bool = False,
) -> int:  # fmt: skip
    """What a training step holds of one image at its peak: blocks, logits and their gradient."""
    block = prior_block_bytes(prior, schedule, precision=precision, on_cpu=on_cpu)
    entry = _WORD * prior.width * schedule.num_tokens  # what goes into a block, or out of the last one
    blocks = prior.depth * entry + block if recompute else prior.depth * block
    logits = 3 * _WORD + (2 if precision == "bfloat16" else 0)  # themselves, their logarithms, the gradient
    return round(blocks + 3 * entry + logits * quantizer.vocab_size * schedule.num_tokens)


def encoding_bytes(settings: TokenizerSettings, schedule: ScaleSchedule) -> int:
    """What making the tokens of one image takes at its peak: a residual block without gradients, float32."""
    return _WORD * max(
        part.num_cells * (2 * part.dim_in + 2 * part.dim_out)
        for part in encoder_parts(settings, schedule)
        if part.kind == "residual"
    )


def cache_bytes(prior: TransformerSettings, schedule: ScaleSchedule, *, precision: Precision) -> int:
    """Keys and values of one image and branch in sampling."""
    word = 2 if precision == "bfloat16" else _WORD
    return 2 * prior.depth * prior.width * schedule.num_tokens * word


def part_bytes(part: Part, *, precision: Precision, on_cpu: bool) -> int:
    """What autograd keeps of a part of the autoencoder for one image, its own input included."""
    half = precision == "bfloat16"
    word = 2 if half else _WORD
    if part.kind in ("conv", "down"):
        return word * part.dim_in * part.num_cells * (4 if part.kind == "down" else 1)
    # a group norm's input and output and what goes into the convolution; GPUs compute the norm in float32
    normed = 3 * word if not half or on_cpu else 2 * _WORD + word
    if part.kind == "head":
        return normed * part.dim_in * part.num_cells
    if part.kind == "residual":
        return normed * (part.dim_in + part.dim_out) * part.num_cells
    return (normed + word * 6) * part.dim_out * part.num_cells


def tokenizer_activations(
    settings: TokenizerSettings, schedule: ScaleSchedule, *, precision: Precision, recompute: bool,
    on_cpu: bool = False,
) -> int:  # fmt: skip
    """What a training step holds of one image at its peak, without perceptual network and discriminator."""
    parts = [*encoder_parts(settings, schedule), *decoder_parts(settings, schedule)]
    kept = [part_bytes(part, precision=precision, on_cpu=on_cpu) for part in parts]
    if recompute:
        word = 2 if precision == "bfloat16" else _WORD
        blocks = [index for index, part in enumerate(parts) if part.is_block]
        largest = max(kept[index] for index in blocks)
        for index in blocks:
            kept[index] = word * parts[index].dim_in * parts[index].num_cells
        kept.append(largest)
    pixels = 3 * schedule.num_cells[-1] * settings.autoencoder.reduction**2
    maps = schedule.num_scales * settings.quantizer.code_dim * schedule.num_cells[-1]
    return sum(kept) + _WORD * (4 * pixels + 4 * maps)


class Shards(NamedTuple):
    """What ``loop.sharding full`` cuts into slices."""

    num_processes: int
    weights: int  #: numbers in the matrices that are cut
    unit: int  #: of these, in the largest part that is gathered at a time


def prior_shards(prior: TransformerSettings, num_processes: int) -> Shards:
    """The matrices of the blocks, gathered block by block."""
    modulation = 0 if prior.shared_adaln else 6 * prior.width**2
    unit = block_weights(prior)
    return Shards(num_processes, prior.depth * (unit + modulation), unit)


def training_memory(
    *, num_parameters: int, activations: int, precision: Precision, recompute: bool, frozen: int = 0,
    shards: Shards | None = None,
) -> Memory:  # fmt: skip
    """The memory of one process.

    Args:
        num_parameters: of all that is trained.
        activations: bytes of this process's part of a micro-batch.
        precision: of the forward pass.
        recompute: copies of the weights in bfloat16 then are gone before the gradients come.
        frozen: parameters of other networks.
        shards: what is cut; None: every process holds everything.
    """
    own = num_parameters
    if shards:
        own += -shards.weights + -(-shards.weights // shards.num_processes)
    half = precision == "bfloat16"
    copies = 2 * num_parameters if half and not recompute else 0
    if shards:  # one unit at work and the next one on its way, and the gradient of one before it is cut
        copies = (2 * (2 if half else _WORD) + _WORD) * shards.unit
    return Memory(
        weights=_WORD * own, gradients=_WORD * own, moments=2 * _WORD * own, average=_WORD * own,
        frozen=_WORD * frozen, copies=copies, activations=activations,
    )  # fmt: skip
