"""Every published tensor name beside ours, as a table that is read in both directions.

Special here: ``{word}`` is one part between dots and is carried over (``{i}`` a level, ``{j}`` a block); of
several rows that match, the first one counts. Buffers that follow from the settings have no row: they are
dropped on the way in and made again on the way out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple


class Row(NamedTuple):
    """One kind of tensor."""

    released: str
    ours: str
    extra_dims: int = 0  #: dimensions of length 1 that the published tensor has in front of ours


_TOKENIZER = (
    Row("encoder.down.{i}.block.{j}.nin_shortcut.{part}", "encoder.levels.{i}.blocks.{j}.shortcut.{part}"),
    Row("encoder.down.{i}.block.{j}.{layer}.{part}", "encoder.levels.{i}.blocks.{j}.{layer}.{part}"),
    Row("encoder.down.{i}.attn.{j}.proj_out.{part}", "encoder.levels.{i}.attentions.{j}.proj.{part}"),
    Row("encoder.down.{i}.attn.{j}.{layer}.{part}", "encoder.levels.{i}.attentions.{j}.{layer}.{part}"),
    Row("encoder.down.{i}.downsample.conv.{part}", "encoder.levels.{i}.resample.conv.{part}"),
    Row("decoder.up.{i}.block.{j}.nin_shortcut.{part}", "decoder.levels.{i}.blocks.{j}.shortcut.{part}"),
    Row("decoder.up.{i}.block.{j}.{layer}.{part}", "decoder.levels.{i}.blocks.{j}.{layer}.{part}"),
    Row("decoder.up.{i}.attn.{j}.proj_out.{part}", "decoder.levels.{i}.attentions.{j}.proj.{part}"),
    Row("decoder.up.{i}.attn.{j}.{layer}.{part}", "decoder.levels.{i}.attentions.{j}.{layer}.{part}"),
    Row("decoder.up.{i}.upsample.conv.{part}", "decoder.levels.{i}.resample.conv.{part}"),
    Row("{side}.mid.block_1.{layer}.{part}", "{side}.middle.block1.{layer}.{part}"),
    Row("{side}.mid.block_2.{layer}.{part}", "{side}.middle.block2.{layer}.{part}"),
    Row("{side}.mid.attn_1.proj_out.{part}", "{side}.middle.attention.proj.{part}"),
    Row("{side}.mid.attn_1.{layer}.{part}", "{side}.middle.attention.{layer}.{part}"),
    Row("quantize.embedding.weight", "quantizer.codebook.weight"),
    Row("quant_conv.{part}", "pre_quant.{part}"),
    Row("post_quant_conv.{part}", "post_quant.{part}"),
    Row("{side}.{layer}.{part}", "{side}.{layer}.{part}"),  # conv_in, norm_out and conv_out
)  # fmt: skip
_PHI_SHARED = Row("quantize.quant_resi.qresi.{part}", "quantizer.phis.0.{part}")
_PHIS_PARTLY_SHARED = Row("quantize.quant_resi.qresi_ls.{phi}.{part}", "quantizer.phis.{phi}.{part}")
_PHI_PER_SCALE = Row("quantize.quant_resi.{phi}.{part}", "quantizer.phis.{phi}.{part}")

#: The transformer.
PRIOR = (
    Row("pos_start", "start_position", 1),
    Row("pos_1LC", "position", 1),
    Row("word_embed.{part}", "input_projection.{part}"),
    Row("class_emb.weight", "class_embedding.weight"),
    Row("lvl_embed.weight", "level_embedding.weight"),
    Row("shared_ada_lin.1.{part}", "shared_modulation.{part}"),
    Row("blocks.{j}.attn.scale_mul_1H11", "blocks.{j}.attention.log_scale_N11", 1),
    Row("blocks.{j}.attn.q_bias", "blocks.{j}.attention.query_bias"),
    Row("blocks.{j}.attn.v_bias", "blocks.{j}.attention.value_bias"),
    Row("blocks.{j}.attn.mat_qkv.weight", "blocks.{j}.attention.qkv.weight"),
    Row("blocks.{j}.attn.proj.{part}", "blocks.{j}.attention.proj.{part}"),
    Row("blocks.{j}.ffn.{layer}.{part}", "blocks.{j}.mlp.{layer}.{part}"),
    Row("blocks.{j}.ada_lin.1.{part}", "blocks.{j}.modulation.{part}"),
    Row("blocks.{j}.ada_gss", "blocks.{j}.modulation_offset", 2),
    Row("head_nm.ada_lin.1.{part}", "head_modulation.{part}"),
    Row("head.{part}", "head.{part}"),
)

#: Buffers that are made, not learned: usage counts, level ids, the block-causal mask, the absent key bias.
USAGE, LEVELS, MASK, KEY_BIAS = (
    "quantize.ema_vocab_hit_SV", "lvl_1L", "attn_bias_for_masking", "blocks.{j}.attn.zero_k_bias",
)  # fmt: skip


def tokenizer_table(num_phis: int) -> tuple[Row, ...]:
    """The rows of a tokenizer with 1 shared phi, several partly shared ones, or (0) one per scale."""
    phis = {0: _PHI_PER_SCALE, 1: _PHI_SHARED}.get(num_phis, _PHIS_PARTLY_SHARED)
    return (phis, *_TOKENIZER)


def to_ours(name: str, table: Sequence[Row]) -> tuple[str, Row] | None:
    """Our name for a published one, with its row; None when no row matches."""
    for row in table:
        if match := _pattern(row.released).fullmatch(name):
            return row.ours.format(**match.groupdict()), row
    return None


def to_published(name: str, table: Sequence[Row]) -> tuple[str, Row]:
    """The published name for ours, with its row. Every parameter of our modules has one."""
    for row in table:
        if match := _pattern(row.ours).fullmatch(name):
            return row.released.format(**match.groupdict()), row
    raise AssertionError(f"{name} has no row in the table of published names")


def is_derived(name: str) -> bool:
    """Whether a published name is a buffer that follows from the settings."""
    return any(_pattern(template).fullmatch(name) for template in (USAGE, LEVELS, MASK, KEY_BIAS))


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^.]+)", re.escape(template)))
