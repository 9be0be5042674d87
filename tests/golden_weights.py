"""The golden cases: inputs and outputs of the original implementation, and the weights they were made with.

Special here: the weights follow a rule (a key, its shape and a seed give its values), so they are made, not
stored. The layouts come from those of the published sizes with other numbers put in, not from this package,
which is under test.
"""

import json
import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"
CASES = ("base", "shared_aln")
PATCH_NUMS = {256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]


@cache
def published_layouts() -> dict[str, Shapes]:
    content = json.loads((FOLDER / "released_layouts.json").read_text())
    return {file: {key: tuple(shape) for key, shape in keys.items()} for file, keys in content.items()}


def published_tokenizer() -> Shapes:
    return published_layouts()["vae_ch160v4096z32.pth"]


@cache
def config(case: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{case}.json").read_text())


@cache
def golden(case: str) -> State:
    return load_file(FOLDER / f"{case}.io.safetensors")


@cache
def golden_edit(case: str) -> State:
    return load_file(FOLDER / f"{case}.edit.safetensors")


def tokenizer_shapes(sizes: dict[str, Any]) -> Shapes:
    """The published tokenizer (160 channels, 4096 codes, 10 scales) with the sizes of a golden case."""
    channels, vocab_size, num_scales = sizes["ch"], sizes["vocab_size"], len(sizes["patch_nums"])
    widths = {160 * factor: channels * factor for factor in (1, 2, 4, 12)}
    assert sizes["z_channels"] == 32 and sizes["share_quant_resi"] == 4
    return _substitute(published_tokenizer(), {**widths, 4096: vocab_size, 10: num_scales})


def prior_shapes(sizes: dict[str, Any]) -> Shapes:
    """A published transformer (depth 36 shares modulation, depth 20 does not) with the sizes of a case."""
    depth, num_tokens = (36, 2240) if sizes["shared_aln"] else (20, 680)
    width = {64 * depth * factor: sizes["embed_dim"] * factor for factor in (1, 2, 3, 4, 6)}
    others = {
        depth: sizes["num_heads"], 10: len(sizes["patch_nums"]), 1001: sizes["num_classes"] + 1,
        4096: sizes["vocab_size"], num_tokens: sum(side * side for side in sizes["patch_nums"]),
    }  # fmt: skip
    shapes = _substitute(published_layouts()[f"var_d{depth}.pth"], {**width, **others})
    superfluous = tuple(f"blocks.{index}." for index in range(sizes["depth"], depth))
    return {key: shape for key, shape in shapes.items() if not key.startswith(superfluous)}


def _substitute(shapes: Shapes, sizes: dict[int, int]) -> Shapes:
    return {key: tuple(sizes.get(size, size) for size in shape) for key, shape in shapes.items()}


def weights(shapes: Shapes, *, seed: int, patch_nums: tuple[int, ...]) -> State:
    """Values for a layout: drawn for parameters, derived for buffers."""
    return {key: _value(key, shape, seed=seed, patch_nums=patch_nums) for key, shape in shapes.items()}


def _value(key: str, shape: tuple[int, ...], *, seed: int, patch_nums: tuple[int, ...]) -> Tensor:
    if key.endswith(("ema_vocab_hit_SV", "zero_k_bias")):
        return torch.zeros(shape)
    levels = torch.tensor([scale for scale, side in enumerate(patch_nums) for _ in range(side * side)])
    if key == "lvl_1L":
        return levels[None]
    if key == "attn_bias_for_masking":
        return torch.where(levels[:, None] >= levels[None, :], 0.0, -torch.inf)[None, None]
    if key.endswith(".scale_mul_1H11"):
        return torch.full(shape, 1.2)
    generator = numpy.random.default_rng(zlib.crc32(f"{seed}:{key}".encode()))
    drawn = generator.standard_normal(shape, dtype=numpy.float32)
    last = key.rpartition(".")[2]
    if len(shape) == 1:
        drawn = 0.05 * drawn if last in ("bias", "q_bias", "v_bias") else 1 + 0.1 * drawn
    elif last in ("pos_1LC", "pos_start") or key in (
        "quantize.embedding.weight", "class_emb.weight", "lvl_embed.weight",
    ):  # fmt: skip
        drawn = 0.5 * drawn
    elif last == "ada_gss":
        drawn = 0.3 * drawn
    else:
        drawn = drawn * (0.6 / math.sqrt(math.prod(shape[1:])))
    return torch.from_numpy(drawn)


@cache
def _states(case: str) -> tuple[State, State]:
    sizes = config(case)
    sides = tuple(sizes["patch_nums"])
    tokenizer = weights(tokenizer_shapes(sizes), seed=sizes["seed_vae"], patch_nums=sides)
    return tokenizer, weights(prior_shapes(sizes), seed=sizes["seed_var"], patch_nums=sides)


def states(case: str) -> tuple[State, State]:
    """Tokenizer and transformer of a case under their published names; the dicts are the caller's."""
    tokenizer, prior = _states(case)
    return dict(tokenizer), dict(prior)


def wrapped(tokenizer: State, prior: State) -> dict[str, Any]:
    """What the published trainer saves beside its weights, in short."""
    optimizer = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0, 1]}]}}
    settings = {"label_smooth": 0.0, "prog_it": 0}
    trainer = {"config": settings, "var_wo_ddp": prior, "vae_local": tokenizer, "var_opt": optimizer}
    return {"epoch": 7, "iter": 0, "trainer": trainer, "args": {"depth": 3, "exp_name": "text"}}
