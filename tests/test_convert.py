"""The published layout to ours and back: every name and shape, and what is said when one does not fit."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from golden_weights import (
    CASES,
    PATCH_NUMS,
    Shapes,
    State,
    published_layouts,
    published_tokenizer,
    states,
)
from nextscale.convert import from_released, to_released
from nextscale.generate.folder import build_prior
from nextscale.generate.generator import Generator
from nextscale.generate.settings import ModelSettings
from nextscale.prior.settings import PriorSettings
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.model import Tokenizer
from nextscale.tokenizer.settings import AutoencoderSettings, QuantizerSettings, TokenizerSettings

SMALL = TokenizerSettings(
    autoencoder=AutoencoderSettings(base_dim=32, multipliers=(1, 2), num_res_blocks=1),
    quantizer=QuantizerSettings(vocab_size=16, code_dim=4, num_phis=2),
)


def on_meta(shapes: Shapes) -> State:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def shapes_of(state: State | None) -> Shapes:
    assert state is not None
    return {key: tuple(value.shape) for key, value in state.items()}


def build(tokenizer: TokenizerSettings = SMALL, *, prior: PriorSettings | None = None) -> Generator:
    names = ("0", "1", "2") if prior else ()
    schedule = ScaleSchedule.square((1, 2, 3))
    settings = ModelSettings(schedule=schedule, tokenizer=tokenizer, prior=prior, class_names=names)
    return Generator(settings, Tokenizer(tokenizer, schedule), build_prior(settings) if prior else None)


@pytest.mark.parametrize("file", [file for file in published_layouts() if file.startswith("var_")])
def test_published_models_convert_both_ways(file: str) -> None:
    depth, sides = int(file[5:7]), PATCH_NUMS[512 if "d36" in file else 256]
    prior = published_layouts()[file]
    generator = from_released(on_meta(published_tokenizer()), on_meta(prior), patch_nums=sides)
    settings = generator.settings
    assert settings.schedule == ScaleSchedule.square(sides)
    assert settings.tokenizer == TokenizerSettings()  # our defaults are those of the paper
    assert settings.prior == PriorSettings(
        depth=depth, model_dim=64 * depth, num_heads=depth, shared_adaln=file == "var_d36.pth"
    )
    assert settings.class_names == tuple(str(number) for number in range(1000))
    assert (settings.enlarge, settings.sampling.guidance) == (1.125, 1.5)
    assert (settings.sampling.top_k, settings.sampling.top_p) == (900, 0.96)
    modules = [*generator.tokenizer.parameters(), *generator.prior.parameters()]
    assert all(value.is_meta and not value.requires_grad for value in modules)
    tokenizer_back, prior_back = to_released(generator)
    assert shapes_of(tokenizer_back) == published_tokenizer()
    assert shapes_of(prior_back) == prior


def test_both_published_tokenizers_have_one_layout() -> None:
    layouts = [shapes for file, shapes in published_layouts().items() if file.startswith("vae")]
    assert len(layouts) == 2 and layouts[0] == layouts[1]


@pytest.mark.parametrize("case", CASES)
def test_weights_and_buffers_come_back_unchanged(case: str) -> None:
    for given, back in zip(states(case), to_released(from_released(*states(case))), strict=True):
        assert back is not None and given.keys() == back.keys()
        for key, value in given.items():
            assert value.dtype == back[key].dtype and torch.equal(value, back[key]), key


def test_settings_of_a_golden_case() -> None:
    settings = from_released(*states("base")).settings
    assert settings.schedule == ScaleSchedule.square((1, 2, 3, 4))
    assert settings.tokenizer.autoencoder == AutoencoderSettings(base_dim=32)
    assert settings.prior == PriorSettings(depth=3, model_dim=96, num_heads=4)
    assert len(settings.class_names) == 7
    assert settings.sampling.top_k == 0  # 900 would be more than the vocabulary


def test_half_precision_becomes_float32_and_buffers_may_be_absent() -> None:
    tokenizer, prior = states("base")
    half = {key: value.half() for key, value in without(without(prior, "lvl_1L"), "attn_bias").items()}
    del tokenizer["quantize.ema_vocab_hit_SV"]
    generator = from_released(tokenizer, half, patch_nums=[1, 2, 3, 4])
    assert {value.dtype for value in generator.prior.parameters()} == {torch.float32}


def test_given_tensors_stay_as_they_are() -> None:
    tokenizer, prior = states("base")
    parameter = torch.nn.Parameter(prior["head.weight"].clone())
    from_released(tokenizer, {**prior, "head.weight": parameter})
    assert parameter.requires_grad


@pytest.mark.parametrize(
    ("num_phis", "first_phi"),
    [(1, "qresi.weight"), (2, "qresi_ls.0.weight"), (4, "qresi_ls.0.weight"), (0, "0.weight")],
)
def test_each_way_of_sharing_phis(num_phis: int, first_phi: str) -> None:
    quantizer = SMALL.quantizer.model_copy(update={"num_phis": num_phis})
    generator = build(SMALL.model_copy(update={"quantizer": quantizer}))
    tokenizer, prior = to_released(generator)
    assert prior is None
    phis = [key for key in tokenizer if key.startswith("quantize.quant_resi.") and key.endswith("weight")]
    assert phis[0] == f"quantize.quant_resi.{first_phi}" and len(phis) == (num_phis or 3)
    back = from_released(tokenizer, patch_nums=(1, 2, 3))
    assert back.settings.tokenizer.quantizer == quantizer
    assert back.tokenizer.quantizer.phi_of_scale == generator.tokenizer.quantizer.phi_of_scale
    images = torch.rand(1, 3, 6, 6) * 2 - 1
    tokens_BL = generator.tokenizer.encode(images)
    assert torch.equal(back.tokenizer.encode(images), tokens_BL)
    assert torch.equal(back.tokenizer.decode(tokens_BL), generator.tokenizer.decode(tokens_BL))


@pytest.mark.parametrize(
    "change",
    [
        {"attention": False},
        {"num_res_blocks": 3},
        {"multipliers": (1, 1, 3)},
        {"multipliers": (2,)},
        {"base_dim": 64},
    ],
    ids=str,
)
def test_autoencoder_settings_are_inferred(change: dict[str, Any]) -> None:
    autoencoder = SMALL.autoencoder.model_copy(update=change)
    tokenizer, _ = to_released(build(SMALL.model_copy(update={"autoencoder": autoencoder})))
    assert from_released(tokenizer, patch_nums=(1, 2, 3)).settings.tokenizer.autoencoder == autoencoder


def test_prior_settings_are_inferred() -> None:
    prior = PriorSettings(depth=2, model_dim=24, num_heads=3, mlp_ratio=1.5, shared_adaln=True, unit_qk=False)
    states = to_released(build(prior=prior))
    assert from_released(*states, num_heads=3).settings.prior == prior
    with pytest.raises(ValueError, match="give num_heads"):
        from_released(*states)


def test_unit_codes_are_passed_on() -> None:
    tokenizer, prior = states("base")
    assert from_released(tokenizer, prior, unit_codes=True).settings.tokenizer.quantizer.unit_codes


def without(state: State, part: str) -> State:
    return {name: value for name, value in state.items() if part not in name}


T, P = states("base")
NO_LEVELS = without(P, "lvl_1L")
CONV, HEADS = "encoder.down.2.block.1.conv2.bias", "blocks.0.attn.scale_mul_1H11"
NOT_SQUARE, BIAS = torch.tensor([[0, 1, 1, 2]]), "blocks.1.attn.zero_k_bias"
TRAINER: Any = {"trainer": {"var_wo_ddp": P}}
EPOCH: Any = {**T, "epoch": 3}

#: Tokenizer, prior, options, what the message says.
REFUSED: dict[str, tuple[State, State | None, dict[str, Any], str]] = {
    "missing": (without(T, "decoder.norm_out.bias"), P, {}, "tokenizer does .*norm_out.bias is missing"),
    "left over": ({**T, "extra.1": T["quant_conv.bias"]}, P, {}, "extra.1 is not part of the model"),
    "shape": ({**T, CONV: torch.zeros(7)}, P, {}, rf"{CONV} has shape \(7,\), expected \(64,\)"),
    "vocabulary": (T, {**P, "head.bias": torch.zeros(9)}, {}, r"transformer .* head.bias has shape \(9,\)"),
    "no prior inside": (T, T, {}, "word_embed.weight is missing among encoder.conv_in.weight"),
    "no tokenizer inside": (P, P, {}, "quantize.embedding.weight is missing among pos_start"),
    "empty": ({}, None, {}, "quantize.embedding.weight is missing"),
    "dimensions": ({**T, "encoder.conv_in.weight": torch.zeros(3)}, P, {}, "conv_in.weight has shape"),
    "no phi": (without(T, "quant_resi"), P, {}, "no quantize.quant_resi"),
    "groups": ({**T, "encoder.conv_in.weight": torch.zeros(48, 3, 3, 3)}, P, {}, "norm_groups"),
    "width": (T, {**P, HEADS: torch.zeros(1, 5, 1, 1)}, {}, "model_dim 96 is not divisible by num_heads 5"),
    "heads twice": (T, P, {"num_heads": 3}, "num_heads=3 was given"),
    "heads of no prior": (T, None, {"num_heads": 3, "patch_nums": (1, 2)}, "no effect without a prior"),
    "no sides": (T, NO_LEVELS, {}, "give patch_nums"),
    "no prior to read sides from": (T, None, {}, "give patch_nums"),
    "other sides": (T, P, {"patch_nums": (1, 2, 3)}, r"patch_nums=\(1, 2, 3\) was given"),
    "wrong sides": (T, NO_LEVELS, {"patch_nums": (1, 2, 4)}, r"pos_1LC has shape \(1, 30, 96\), expected"),
    "shrinking sides": (T, NO_LEVELS, {"patch_nums": (5, 2)}, "does not fit"),
    "levels": (T, {**P, "lvl_1L": NOT_SQUARE}, {}, r"maps of \[1, 2, 1\] cells"),
    "key bias": (T, {**P, BIAS: torch.ones(96)}, {}, f"{BIAS} .* not zero"),
    "part of a trainer": (TRAINER, None, {}, "expected 'vae_local'"),
    "no tensors": (EPOCH, P, {}, "'epoch' is of type int"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_named_in_one_line(kind: str) -> None:
    tokenizer, prior, options, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message) as caught:
        from_released(tokenizer, prior, **options)
    assert "\n" not in str(caught.value)


def test_the_published_layout_has_no_place_for_everything() -> None:
    quantizer = SMALL.quantizer.model_copy(update={"phi_of_scale": (1, 0, 1)})
    with pytest.raises(ValueError, match=re.escape("phi_of_scale=(1, 0, 1)")):
        to_released(build(SMALL.model_copy(update={"quantizer": quantizer})))
    autoencoder = SMALL.autoencoder.model_copy(update={"norm_groups": 16})
    with pytest.raises(ValueError, match="norm_groups=16"):
        to_released(build(SMALL.model_copy(update={"autoencoder": autoencoder})))
    wide = ModelSettings(schedule=ScaleSchedule(sizes=((1, 2), (2, 4))), tokenizer=SMALL)
    with pytest.raises(ValueError, match="square"):
        to_released(Generator(wide, Tokenizer(SMALL, wide.schedule)))
