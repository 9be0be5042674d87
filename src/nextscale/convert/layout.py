"""A model in the published layout to a `Generator` and back.

Letters: L tokens of all scales.
Special here: what does not fit is reported under the published names, which are those in the user's file;
the weights are taken over, not copied, so that a large model is in memory once. The usage counts of the
codes (`ema_vocab_hit_SV`) are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nextscale import checkpoint
from nextscale.convert import names
from nextscale.convert.infer import PRIOR_PART, TOKENIZER_PART, State, model_settings, unwrap
from nextscale.convert.names import PRIOR, Row, tokenizer_table
from nextscale.generate.folder import build_prior
from nextscale.generate.generator import Generator
from nextscale.generate.settings import ModelSettings
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.model import Tokenizer


def from_released(
    tokenizer_state: State, prior_state: State | None = None, *,
    patch_nums: Sequence[int] | None = None, num_heads: int | None = None, unit_codes: bool = False,
) -> Generator:  # fmt: skip
    """Build a generator from published weights; its sizes are read off their names and shapes.

    Args:
        tokenizer_state: the tokenizer under its published names, or the trainer's dict; also on device meta.
        prior_state: the transformer, likewise; None for a model that only reconstructs.
        patch_nums: side of each token map; needed where no ``lvl_1L`` tells: on device meta, without a prior.
        num_heads: heads of the transformer; needed only without unit queries and keys.
        unit_codes: the tokenizer was trained with ``using_znorm``.

    Returns:
        A generator in float32, which shares memory with the given tensors where those are float32; its
        classes are named "0", "1" and so on.

    Raises:
        ValueError: names what is missing, left over, of another shape or contradictory.
    """
    tokenizer_state = unwrap(tokenizer_state, TOKENIZER_PART)
    prior_state = None if prior_state is None else unwrap(prior_state, PRIOR_PART)
    settings = model_settings(
        tokenizer_state, prior_state, patch_nums=patch_nums, num_heads=num_heads, unit_codes=unit_codes
    )
    with torch.device("meta"):
        tokenizer = Tokenizer(settings.tokenizer, settings.schedule)
        prior = None if prior_state is None else build_prior(settings)
    table = tokenizer_table(settings.tokenizer.quantizer.num_phis)
    _fill(tokenizer, tokenizer_state, table=table, source="the published tokenizer")
    if prior is not None and prior_state is not None:
        _fill(prior, prior_state, table=PRIOR, source="the published transformer")
    return Generator(settings, tokenizer, prior)


def to_released(generator: Generator) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """The weights of a generator in the published layout, sharing memory with it, with the buffers made anew.

    Returns:
        The state dict of the tokenizer, and that of the transformer or None when there is none.

    Raises:
        ValueError: the model has something for which the published code has no place.
    """
    settings = generator.settings
    _check_expressible(settings)
    schedule, quantizer = settings.schedule, settings.tokenizer.quantizer
    tokenizer = _published(generator.tokenizer, tokenizer_table(quantizer.num_phis))
    device = generator.tokenizer.quantizer.codebook.weight.device
    tokenizer[names.USAGE] = torch.zeros(schedule.num_scales, quantizer.vocab_size, device=device)
    if settings.prior is None:
        return tokenizer, None
    prior = _published(generator.prior, PRIOR)
    device = generator.prior.position.device
    levels_L = torch.tensor(schedule.level_ids, device=device)
    hidden = levels_L[:, None] < levels_L
    prior[names.LEVELS] = levels_L[None]
    prior[names.MASK] = torch.zeros(hidden.shape, device=device).masked_fill(hidden, -torch.inf)[None, None]
    for block in range(settings.prior.depth):
        prior[names.KEY_BIAS.format(j=block)] = torch.zeros(settings.prior.width, device=device)
    return tokenizer, prior


def _published(module: nn.Module, table: Sequence[Row]) -> dict[str, Tensor]:
    tensors = {}
    for ours, value in module.state_dict().items():
        released, row = names.to_published(ours, table)
        tensors[released] = value[(None,) * row.extra_dims]
    return tensors


def _fill(module: nn.Module, state: State, *, table: Sequence[Row], source: str) -> None:
    """Give the weights to a module on the meta device, after comparing every published name and shape."""
    learned = {name: value for name, value in state.items() if not names.is_derived(name)}
    checkpoint.check_fit(_published(module, table), learned, source=source)
    _check_key_bias(state, source=source)
    tensors = {}
    for released, value in learned.items():
        found = names.to_ours(released, table)
        assert found is not None, f"{released} fits but has no row"
        ours, row = found
        tensors[ours] = value.detach().float().reshape(value.shape[row.extra_dims :])
    checkpoint.load_into(module, tensors, source=source)
    module.eval().requires_grad_(False)


def _check_key_bias(state: State, *, source: str) -> None:
    for name, value in state.items():
        if name.endswith(".zero_k_bias") and not value.is_meta and value.any():
            raise ValueError(f"{name} of {source} is not zero, but keys have no bias: give another file")


def _check_expressible(settings: ModelSettings) -> None:
    schedule, quantizer = settings.schedule, settings.tokenizer.quantizer
    groups = settings.tokenizer.autoencoder.norm_groups
    if settings.prior is not None and settings.prior.kind != "next_scale":
        raise ValueError(
            f"the published layout knows next_scale priors only, this one is of kind {settings.prior.kind}"
        )
    if any(h != w for h, w in schedule.sizes):
        raise ValueError(f"the published layout knows square token maps only, given {schedule.sizes}")
    if groups != 32:
        raise ValueError(f"the published code has 32 groups in every norm, given norm_groups={groups}")
    rule = _phi_rule(quantizer.num_phis, schedule)
    if quantizer.phi_of_scale not in (None, rule):
        raise ValueError(f"the published code uses phis {rule}, given phi_of_scale={quantizer.phi_of_scale}")


def _phi_rule(num_phis: int, schedule: ScaleSchedule) -> tuple[int, ...]:
    return schedule.phi_of_scale(num_phis) if num_phis else tuple(range(schedule.num_scales))
