"""Settings of a model, read off the names and shapes of a published checkpoint.

Letters: L tokens of all scales, N heads.
Special here: only names and shapes are read, so tensors on the meta device will do; the one exception is
`lvl_1L`, whose values tell the scales. What no file holds (kind of code search, drop path, epsilons) is an
argument or the default.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from nextscale.convert.names import LEVELS
from nextscale.generate.settings import ModelSettings, SamplingSettings
from nextscale.prior.settings import PriorSettings
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.settings import AutoencoderSettings, QuantizerSettings, TokenizerSettings

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]

#: Where the published trainer's checkpoint keeps its two models, below "trainer".
TOKENIZER_PART, PRIOR_PART = "vae_local", "var_wo_ddp"

_TOP_K = 900  # of the published evaluation


def unwrap(content: Mapping[str, Any], part: str) -> State:
    """The state dict itself, whether given plain or inside the dict that the published trainer saves.

    Args:
        content: a state dict, or the trainer's ``{"trainer": {"vae_local": ..., "var_wo_ddp": ...}, ...}``.
        part: `TOKENIZER_PART` or `PRIOR_PART`.

    Raises:
        ValueError: a trainer's dict without that part, or something that is no tensor.
    """
    state, trainer = content, content.get("trainer")
    if isinstance(trainer, Mapping):
        if not isinstance(trainer.get(part), Mapping):
            raise ValueError(f"this trainer checkpoint holds {_some(trainer)}: expected {part!r} as well")
        state = trainer[part]
    for name, value in state.items():
        if not (isinstance(name, str) and hasattr(value, "is_meta")):
            raise ValueError(f"{name!r} is of type {type(value).__name__}: expected tensors by name")
    return state


def model_settings(
    tokenizer_state: State, prior_state: State | None, *,
    patch_nums: Sequence[int] | None, num_heads: int | None, unit_codes: bool,
) -> ModelSettings:  # fmt: skip
    """The whole ``config.json`` of a published model, with the preprocessing and sampling published with it.

    Args:
        tokenizer_state: under the published names.
        prior_state: likewise, or None.
        patch_nums: side of each token map; None reads it from the prior's ``lvl_1L``.
        num_heads: N; None reads it from the learned scales of unit queries and keys.
        unit_codes: the codes are compared by direction (the original's ``using_znorm``).

    Raises:
        ValueError: names that a model needs are missing, or what was given contradicts the checkpoint.
    """
    if prior_state is None and num_heads is not None:
        raise ValueError(f"num_heads={num_heads} has no effect without a prior: leave it out")
    try:
        tokenizer = _tokenizer_settings(tokenizer_state, unit_codes=unit_codes)
        prior = None if prior_state is None else _prior_settings(prior_state, num_heads=num_heads)
        num_classes = 0 if prior_state is None else _shape(prior_state, "class_emb.weight", 2)[0] - 1
        vocab_size = tokenizer.quantizer.vocab_size
        return ModelSettings(
            schedule=ScaleSchedule.square(_patch_nums(prior_state, patch_nums)),
            tokenizer=tokenizer,
            prior=prior,
            class_names=tuple(str(number) for number in range(num_classes)),
            enlarge=1.125,
            sampling=SamplingSettings(guidance=1.5, top_k=_TOP_K if vocab_size >= _TOP_K else 0, top_p=0.96),
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"no model can be built from this checkpoint: {place}: {first['msg']}") from error


def _tokenizer_settings(state: State, *, unit_codes: bool) -> TokenizerSettings:
    vocab_size, code_dim = _shape(state, "quantize.embedding.weight", 2)
    base_dim = _shape(state, "encoder.conv_in.weight", 4)[0]
    num_levels = _count(state, r"encoder\.down\.(\d+)\.")
    dims = [_shape(state, f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(num_levels)]
    return TokenizerSettings(
        autoencoder=AutoencoderSettings(
            base_dim=base_dim,
            multipliers=tuple(max(1, dim // base_dim) for dim in dims),
            num_res_blocks=_count(state, r"encoder\.down\.0\.block\.(\d+)\."),
            attention="encoder.mid.attn_1.qkv.weight" in state,
        ),
        quantizer=QuantizerSettings(
            vocab_size=vocab_size, code_dim=code_dim, num_phis=_num_phis(state), unit_codes=unit_codes
        ),
    )


def _num_phis(state: State) -> int:
    """1 shared, n partly shared, 0 one per scale."""
    if any(name.startswith("quantize.quant_resi.qresi.") for name in state):
        return 1
    if partly_shared := _count(state, r"quantize\.quant_resi\.qresi_ls\.(\d+)\."):
        return partly_shared
    if _count(state, r"quantize\.quant_resi\.(\d+)\."):
        return 0
    raise ValueError("the tokenizer holds no quantize.quant_resi.*: models without phi cannot be converted")


def _prior_settings(state: State, *, num_heads: int | None) -> PriorSettings:
    width = _shape(state, "word_embed.weight", 2)[0]
    scales = "blocks.0.attn.scale_mul_1H11"
    unit_qk = scales in state
    if unit_qk:
        read = _shape(state, scales, 4)[1]
        if num_heads not in (None, read):
            raise ValueError(f"num_heads={num_heads} was given, but {scales} has {read}: leave num_heads out")
        num_heads = read
    elif num_heads is None:
        raise ValueError(f"without {scales} the number of heads is in no shape: give num_heads")
    return PriorSettings(
        depth=_count(state, r"blocks\.(\d+)\."),
        model_dim=width,
        num_heads=num_heads,
        mlp_ratio=_shape(state, "blocks.0.ffn.fc1.weight", 2)[0] / width,
        shared_adaln="shared_ada_lin.1.weight" in state,
        unit_qk=unit_qk,
    )


def _patch_nums(prior_state: State | None, given: Sequence[int] | None) -> tuple[int, ...]:
    levels_1L = None if prior_state is None else prior_state.get(LEVELS)
    if levels_1L is None or levels_1L.is_meta:
        if given is None:
            raise ValueError(f"no {LEVELS} tells the sides of the token maps: give patch_nums, as (1, 2, 3)")
        return tuple(given)
    levels = levels_1L.flatten().tolist()
    counts = [count for _, count in sorted(Counter(levels).items())]
    sides = tuple(math.isqrt(count) for count in counts)
    if levels != [level for level, side in enumerate(sides) for _ in range(side * side)]:
        raise ValueError(f"{LEVELS} holds maps of {counts} cells: expected squares, level by level from 0")
    if given is not None and tuple(given) != sides:
        raise ValueError(f"patch_nums={tuple(given)} was given, but {LEVELS} says {sides}: leave it out")
    return sides


def _shape(state: State, name: str, num_dims: int) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"{name} is missing among {_some(state)}: give a published checkpoint")
    shape = tuple(state[name].shape)
    if len(shape) != num_dims or 0 in shape:
        raise ValueError(f"{name} has shape {shape}, expected {num_dims} dimensions, none of them 0")
    return shape


def _count(state: State, pattern: str) -> int:
    """How many numbers occur in the place of the group, among the names that begin with the pattern."""
    found = (re.match(pattern, name) for name in state)
    return len({match[1] for match in found if match})


def _some(names: Mapping[Any, Any]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(str(name) for name in list(names)[:3]) + more
