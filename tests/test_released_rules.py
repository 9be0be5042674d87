"""Rules of the original that are easily read wrongly, each against a plain, slow reading of it.

Letters: B batch, L tokens of all scales, C width of a code, D width, N heads, E head width, h w latent cells.
"""

from __future__ import annotations

import math

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from golden_weights import CASES, State, config, golden, prior_shapes, states, tokenizer_shapes, weights
from nextscale.convert import from_released
from nextscale.generate.folder import build_prior
from nextscale.generate.generator import Generator
from nextscale.generate.settings import ModelSettings, SamplingSettings
from nextscale.prior.settings import PriorSettings
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.model import Tokenizer
from nextscale.tokenizer.settings import AutoencoderSettings, QuantizerSettings, TokenizerSettings

Size = tuple[int, int]


def nearest_code(vector: numpy.ndarray, codes: numpy.ndarray, *, unit: bool) -> int:
    if unit:
        return max(range(len(codes)), key=lambda code: vector @ codes[code] / numpy.linalg.norm(codes[code]))
    return min(range(len(codes)), key=lambda code: ((vector - codes[code]) ** 2).sum())


def plain_encode(
    state: State, features_Chw: Tensor, sizes: list[Size], *, phis: list[int], unit: bool = False
) -> list[int]:
    """Algorithm 1 of the paper for one image, cell by cell, from the published names."""
    codes = state["quantize.embedding.weight"]
    size, left, tokens = sizes[-1], features_Chw.clone(), []
    for scale, (rows, columns) in enumerate(sizes):
        small = F.adaptive_avg_pool2d(left, (rows, columns))
        chosen = [
            nearest_code(small[:, row, column].double().numpy(), codes.double().numpy(), unit=unit)
            for row in range(rows)
            for column in range(columns)
        ]
        tokens += chosen
        picked = codes[torch.tensor(chosen)].T.reshape(1, -1, rows, columns)
        large = F.interpolate(picked, size=size, mode="bicubic") if (rows, columns) != size else picked
        phi = f"quantize.quant_resi.qresi_ls.{phis[scale]}."
        mended = F.conv2d(large, state[phi + "weight"], state[phi + "bias"], padding=1)
        left = left - (0.5 * large + 0.5 * mended)[0]
    return tokens


def plain_logits(state: State, labels_B: Tensor, inputs_BLC: Tensor, *, heads: int) -> Tensor:
    """The original's training pass: one sequence, one mask, from the published names."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[name + ".weight"], state[name + ".bias"])

    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    condition = F.embedding(labels_B, state["class_emb.weight"])
    start = condition[:, None] + state["pos_start"]
    x = torch.cat([start, linear("word_embed", inputs_BLC)], dim=1)
    x = x + state["pos_1LC"] + F.embedding(state["lvl_1L"], state["lvl_embed.weight"])
    batch, length, width = x.shape
    for block in range(len({name.split(".")[1] for name in state if name.startswith("blocks.")})):
        part = f"blocks.{block}."
        if "shared_ada_lin.1.weight" in state:
            shared = linear("shared_ada_lin.1", F.silu(condition)).view(batch, 1, 6, width)
            modulation = (shared + state[part + "ada_gss"]).unbind(2)
        else:
            modulation = linear(part + "ada_lin.1", F.silu(condition)).view(batch, 1, 6, width).unbind(2)
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation
        h = norm(x) * (1 + scale1) + shift1
        query, key, value = (
            item.view(batch, length, heads, -1).transpose(1, 2)
            for item in F.linear(h, state[part + "attn.mat_qkv.weight"]).chunk(3, dim=-1)
        )
        query = query + state[part + "attn.q_bias"].view(heads, 1, -1)
        value = value + state[part + "attn.v_bias"].view(heads, 1, -1)
        if part + "attn.scale_mul_1H11" in state:
            factor = state[part + "attn.scale_mul_1H11"].clamp(max=math.log(100)).exp()
            query = F.normalize(query, dim=-1) * factor
            key = F.normalize(key, dim=-1)
        else:
            query = query * 0.25 / math.sqrt(width // heads)
        attention = (query @ key.transpose(2, 3) + state["attn_bias_for_masking"]).softmax(dim=-1)
        mixed = (attention @ value).transpose(1, 2).reshape(batch, length, width)
        x = x + gate1 * linear(part + "attn.proj", mixed)
        h = norm(x) * (1 + scale2) + shift2
        x = x + gate2 * linear(part + "ffn.fc2", F.gelu(linear(part + "ffn.fc1", h), approximate="tanh"))
    scale, shift = linear("head_nm.ada_lin.1", F.silu(condition)).view(batch, 1, 2, width).unbind(2)
    return linear("head", norm(x) * (1 + scale) + shift)


def close(given: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    assert given.shape == expected.shape
    return bool((given - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_the_plain_readings_give_the_golden_numbers(case: str) -> None:
    tokenizer, prior = states(case)
    known, sides = golden(case), config(case)["patch_nums"]
    assert close(plain_logits(prior, known["labels"], known["teacher_input"], heads=4), known["logits"])
    sizes, phis = [(side, side) for side in sides], [0, 1, 2, 3] if len(sides) == 4 else [0, 2, 3]
    tokens = plain_encode(tokenizer, known["features"][0], sizes, phis=phis)
    assert tokens == torch.cat([known[f"tokens.{scale}"][0] for scale in range(len(sides))]).tolist()


def test_unit_codes_normalise_only_the_search() -> None:
    tokenizer, prior = states("base")
    generator = from_released(tokenizer, prior, unit_codes=True)
    features = golden("base")["features"]
    tokens_BL = generator.tokenizer.quantizer.encode(features)
    sizes = list(generator.settings.schedule.sizes)
    for image, tokens_L in zip(features, tokens_BL, strict=True):
        assert tokens_L.tolist() == plain_encode(tokenizer, image, sizes, phis=[0, 1, 2, 3], unit=True)
    by_distance = from_released(tokenizer, prior).tokenizer
    assert not torch.equal(tokens_BL, by_distance.quantizer.encode(features))
    # the same tokens stand for the same vectors, whichever way they were found
    assert torch.equal(generator.tokenizer.decode(tokens_BL), by_distance.decode(tokens_BL))


@pytest.mark.parametrize("case", CASES)
def test_attention_without_unit_queries_and_keys(case: str) -> None:
    tokenizer, prior = states(case)
    bare = {name: value for name, value in prior.items() if not name.endswith("scale_mul_1H11")}
    labels, inputs = golden(case)["labels"], golden(case)["teacher_input"]
    generator = from_released(tokenizer, bare, num_heads=4)
    logits = generator.prior(labels, inputs)
    assert close(logits, plain_logits(bare, labels, inputs, heads=4))
    assert not close(logits, golden(case)["logits"], tolerance=1e-2)
    sampled = generator(labels=[0, 1], seeds=[0, 1], guidance=0, top_k=1, top_p=1.0)
    assert_greedy(generator, sampled.tokens_BL, labels=[0, 1])


def assert_greedy(
    generator: Generator, tokens_BL: Tensor | None, *, labels: list[int], guidance: float = 0.0
) -> None:
    """Sampling scale by scale agrees with the pass of training over what came out."""
    assert tokens_BL is not None
    inputs = generator.tokenizer.teacher_inputs(tokens_BL)
    logits = generator.prior(torch.tensor(labels), inputs)
    none = generator.prior(torch.full((len(labels),), generator.prior.unconditional), inputs)
    assert torch.equal(((1 + guidance) * logits - guidance * none).argmax(-1), tokens_BL)


def test_one_scale() -> None:
    sizes = {**config("base"), "patch_nums": [1]}
    tokenizer = weights(tokenizer_shapes(sizes), seed=1, patch_nums=(1,))
    prior = weights(prior_shapes(sizes), seed=2, patch_nums=(1,))
    generator = from_released(tokenizer, prior)
    assert generator.tokenizer.image_size == (16, 16)
    assert generator.tokenizer.quantizer.phi_of_scale == (0,)
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    tokens_BL = generator.tokenizer.encode(images)
    features = generator.tokenizer.features(images)
    plain = [plain_encode(tokenizer, image, [(1, 1)], phis=[0]) for image in features.detach()]
    assert tokens_BL.tolist() == plain
    inputs = generator.tokenizer.teacher_inputs(tokens_BL)
    assert inputs.shape == (3, 0, 32)
    labels = torch.tensor([0, 3, 7])
    assert close(generator.prior(labels, inputs), plain_logits(prior, labels, inputs, heads=4))
    result = generator(labels=[0, 3, 5], seeds=[0, 1, 2], guidance=3.0, top_k=1, top_p=1.0)
    assert_greedy(generator, result.tokens_BL, labels=[0, 3, 5], guidance=3.0)  # all of it at the only scale


def wide_model() -> Generator:
    tokenizer = TokenizerSettings(
        autoencoder=AutoencoderSettings(base_dim=32, multipliers=(1, 2), num_res_blocks=1, attention=False),
        quantizer=QuantizerSettings(vocab_size=64, code_dim=8, num_phis=4),
    )
    settings = ModelSettings(
        schedule=ScaleSchedule(sizes=((1, 2), (2, 3), (3, 5), (4, 8))), tokenizer=tokenizer,
        prior=PriorSettings(depth=2, model_dim=32, num_heads=4), class_names=("a", "b"),
        sampling=SamplingSettings(guidance=0.0, top_k=1),
    )  # fmt: skip
    generator = Generator(settings, Tokenizer(tokenizer, settings.schedule), build_prior(settings))
    for parameter in [*generator.tokenizer.parameters(), *generator.prior.parameters()]:
        torch.nn.init.normal_(parameter, std=0.2)
    return generator


def test_scales_that_are_not_square() -> None:
    generator = wide_model()
    quantizer = generator.tokenizer.quantizer
    state = {"quantize.embedding.weight": quantizer.codebook.weight.detach()}
    for name, value in quantizer.phis.state_dict().items():
        state[f"quantize.quant_resi.qresi_ls.{name}"] = value
    features = torch.randn(2, 8, 4, 8)
    sizes = list(generator.settings.schedule.sizes)
    plain = [plain_encode(state, image, sizes, phis=[0, 1, 2, 3]) for image in features]
    tokens_BL = quantizer.encode(features)
    assert tokens_BL.tolist() == plain
    assert generator.tokenizer.decode(tokens_BL).shape == (2, 3, 8, 16)
    result = generator(labels=["a", "b"], seeds=[0, 1])
    assert result.images.shape == (2, 8, 16, 3)
    assert_greedy(generator, result.tokens_BL, labels=[0, 1])
