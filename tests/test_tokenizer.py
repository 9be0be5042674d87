"""Images to tokens and back: shapes, the loop over scales against the paper's algorithms."""

from __future__ import annotations

import weakref
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models_for_tests import (
    SCHEDULE,
    VOCAB,
    loud_tokenizer,
    random_images,
    random_tokens,
    tokenizer_settings,
)
from nextscale.scales import ScaleSchedule
from nextscale.tokenizer.model import Tokenizer
from nextscale.tokenizer.settings import AutoencoderSettings, QuantizerSettings, TokenizerSettings

WIDE = ScaleSchedule(sizes=((1, 1), (2, 3), (3, 5)))


# shapes


@pytest.mark.parametrize(("levels", "reduction"), [(1, 1), (3, 4), (4, 8), (5, 16)])
@pytest.mark.parametrize("schedule", [SCHEDULE, WIDE], ids=["square", "wide"])
def test_shapes_at_every_reduction(levels: int, reduction: int, schedule: ScaleSchedule) -> None:
    tokenizer = loud_tokenizer(schedule, levels=levels)
    height, width = schedule.latent_size
    assert tokenizer.settings.autoencoder.reduction == reduction
    assert tokenizer.image_size == (height * reduction, width * reduction)
    images = random_images(tokenizer, 2)
    assert tokenizer.features(images).shape == (2, 6, height, width)
    tokens = tokenizer.encode(images)
    assert tokens.shape == (2, schedule.num_tokens) and tokens.dtype == torch.int64
    assert tokens.min() >= 0 and tokens.max() < VOCAB
    assert tokenizer.decode(tokens).shape == images.shape
    inputs = tokenizer.teacher_inputs(tokens)
    assert inputs.shape == (2, schedule.num_tokens - 1, 6) and inputs.dtype == torch.float32


def test_channels_follow_the_multipliers() -> None:
    settings = TokenizerSettings(
        autoencoder=AutoencoderSettings(base_dim=8, multipliers=(1, 3, 2), num_res_blocks=2, norm_groups=4),
        quantizer=QuantizerSettings(vocab_size=VOCAB, code_dim=6),
    )
    tokenizer = Tokenizer(settings, SCHEDULE)
    assert tokenizer.decode(tokenizer.encode(random_images(tokenizer))).shape == (3, 3, 16, 16)
    blocks = [level.blocks for level in tokenizer.encoder.levels]
    assert [len(level) for level in blocks] == [2, 2, 2]
    assert [level[-1].conv2.out_channels for level in blocks] == [8, 24, 16]
    assert [len(level.blocks) for level in tokenizer.decoder.levels] == [3, 3, 3]
    assert [len(level.attentions) for level in tokenizer.encoder.levels] == [0, 0, 2]


def test_without_attention_there_is_none() -> None:
    settings = tokenizer_settings()
    plain = settings.model_copy(
        update={"autoencoder": settings.autoencoder.model_copy(update={"attention": False})}
    )
    names = {attention: [*Tokenizer(kind, SCHEDULE).state_dict()] for attention, kind in
             ((True, settings), (False, plain))}  # fmt: skip
    assert not any("attention" in name for name in names[False])
    assert sum("attention" in name and name.endswith("qkv.weight") for name in names[True]) == 5
    assert Tokenizer(plain, SCHEDULE).decode(random_tokens(SCHEDULE)).shape == (3, 3, 8, 8)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_nobody_holds_what_a_level_was_given(side: str) -> None:
    tokenizer = loud_tokenizer(SCHEDULE, levels=3)
    alive: dict[int, list[bool]] = {}

    def watch(level: int, first: nn.Module, last: nn.Module) -> None:
        given: list[weakref.ref[Tensor]] = []
        first.register_forward_pre_hook(lambda _, inputs: given.append(weakref.ref(inputs[0])))
        last.register_forward_hook(lambda *_: alive.update({level: [item() is not None for item in given]}))

    for number, level in enumerate(getattr(tokenizer, side).levels):
        watch(number, level.blocks[0], level.resample)
    with torch.no_grad():
        tokenizer.decode(tokenizer.encode(random_images(tokenizer)))
    assert alive == {0: [False], 1: [False], 2: [False]}


# the loop over scales, against the paper's algorithms written out


@torch.no_grad()
def _slow_encode(tokenizer: Tokenizer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Algorithm 1: tokens (B, L), and what is left over of the features."""
    quantizer, schedule = tokenizer.quantizer, tokenizer.schedule
    rest, tokens = tokenizer.features(images), []
    for scale, (h, w) in enumerate(schedule.sizes):
        small = F.interpolate(rest, size=(h, w), mode="area")
        vectors = small.permute(0, 2, 3, 1).reshape(len(images), h * w, 1, -1)
        difference = vectors - quantizer.codebook.weight
        tokens.append(difference.square().sum(dim=-1).argmin(dim=-1))
        rest = rest - _enlarged(tokenizer, tokens[-1], scale)
    return torch.cat(tokens, dim=1), rest


def _enlarged(tokenizer: Tokenizer, tokens_BT: Tensor, scale: int) -> Tensor:
    quantizer, schedule = tokenizer.quantizer, tokenizer.schedule
    h, w = schedule.sizes[scale]
    codes = quantizer.codebook.weight[tokens_BT].reshape(len(tokens_BT), h, w, -1).permute(0, 3, 1, 2)
    if (h, w) != schedule.latent_size:
        codes = F.interpolate(codes, size=schedule.latent_size, mode="bicubic")
    phi = quantizer.phis[quantizer.phi_of_scale[scale]]
    mended = F.conv2d(codes, phi.weight, phi.bias, padding=1)
    ratio = tokenizer.settings.quantizer.phi_ratio
    return (1 - ratio) * codes + ratio * mended


@pytest.mark.parametrize("schedule", [SCHEDULE, WIDE], ids=["square", "wide"])
@pytest.mark.parametrize("num_phis", [0, 1, 4])
def test_encoding_against_the_paper(schedule: ScaleSchedule, num_phis: int) -> None:
    tokenizer = loud_tokenizer(schedule, num_phis=num_phis)
    images = random_images(tokenizer, 4)
    expected, rest = _slow_encode(tokenizer, images)
    tokens = tokenizer.encode(images)
    assert len(tokens.unique()) > 10
    assert torch.equal(tokens, expected)
    last = list(tokenizer.quantizer.maps(tokens))[-1]
    assert torch.allclose(tokenizer.features(images) - last, rest, atol=1e-5)


@pytest.mark.parametrize("schedule", [SCHEDULE, WIDE], ids=["square", "wide"])
def test_maps_and_teacher_inputs_against_the_paper(schedule: ScaleSchedule) -> None:
    tokenizer, tokens = loud_tokenizer(schedule), random_tokens(schedule)
    parts, total, inputs = schedule.split(tokens), torch.zeros(()), []
    maps = list(tokenizer.quantizer.maps(tokens))
    for scale in range(schedule.num_scales):
        total = total + _enlarged(tokenizer, parts[scale], scale)
        assert torch.allclose(maps[scale], total, atol=1e-5)
        if scale + 1 < schedule.num_scales:
            small = F.interpolate(total, size=schedule.sizes[scale + 1], mode="area")
            inputs.append(small.flatten(2).transpose(1, 2))
    assert torch.allclose(tokenizer.teacher_inputs(tokens), torch.cat(inputs, dim=1), atol=1e-5)


def test_each_scale_decoded_ends_with_the_image() -> None:
    tokenizer, tokens = loud_tokenizer(SCHEDULE), random_tokens(SCHEDULE)
    images = list(tokenizer.decode_each_scale(tokens))
    assert len(images) == 4 and torch.equal(images[-1], tokenizer.decode(tokens))
    assert all((one - two).abs().max() > 0.01 for one, two in pairwise(images))
    changed = tokens.clone()
    changed[:, SCHEDULE.slice(2)] += 1
    others = list(tokenizer.decode_each_scale(changed % VOCAB))
    assert [torch.equal(one, two) for one, two in zip(images, others, strict=True)] == [
        True,
        True,
        False,
        False,
    ]


def test_images_are_clamped_for_people_and_not_for_training() -> None:
    tokenizer = loud_tokenizer(SCHEDULE)
    nn.init.constant_(tokenizer.decoder.conv_out.bias, 3.0)
    assert tokenizer.decode(random_tokens(SCHEDULE)).max() == 1
    assert tokenizer(random_images(tokenizer))[0].max() > 1


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    tokenizer = loud_tokenizer(SCHEDULE)
    images = random_images(tokenizer, 6)
    alone = torch.cat([tokenizer.encode(images[row : row + 1]) for row in range(6)])
    assert torch.equal(tokenizer.encode(images), alone)


def test_training_quantises_as_encoding_does() -> None:
    tokenizer = loud_tokenizer(SCHEDULE)
    images = random_images(tokenizer)
    decoded, quantized = tokenizer(images)
    assert torch.equal(quantized.tokens_BL, tokenizer.encode(images))
    assert torch.allclose(decoded.clamp(-1, 1), tokenizer.decode(quantized.tokens_BL), atol=1e-5)


def test_one_scale() -> None:
    tokenizer = loud_tokenizer(ScaleSchedule.square([4]))
    tokens = tokenizer.encode(random_images(tokenizer))
    assert tokenizer.teacher_inputs(tokens).shape == (3, 0, 6)
    assert tokenizer.decode(tokens).shape == (3, 3, 8, 8)


# what users get wrong


def test_images_of_another_size() -> None:
    tokenizer = loud_tokenizer(SCHEDULE)
    for shape in ((2, 3, 8, 9), (2, 1, 8, 8), (3, 8, 8)):
        with pytest.raises(ValueError, match=r"expected images \(B, 3, 8, 8\), given .* resize them"):
            tokenizer.encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            torch.zeros(2, 29, dtype=torch.int64),
            r"expected tokens int64 \(B, 30\), given torch.int64 \(2, 29\)",
        ),
        (torch.zeros(2, 30, dtype=torch.int32), "expected tokens int64"),
        (torch.zeros(30, dtype=torch.int64), "expected tokens int64"),
        (torch.full((2, 30), VOCAB), r"tokens must lie in \[0, 48\), given 48\.\.48"),
        (torch.full((2, 30), -1), r"tokens must lie in \[0, 48\)"),
    ],
)
def test_tokens_that_are_none(tokens: Tensor, message: str) -> None:
    tokenizer = loud_tokenizer(SCHEDULE)
    with pytest.raises(ValueError, match=message):
        tokenizer.decode(tokens)
    with pytest.raises(ValueError, match=message):
        tokenizer.teacher_inputs(tokens)


def test_groups_that_do_not_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="base_dim 12 x multiplier 3 is not divisible by norm_groups 8"):
        AutoencoderSettings(base_dim=12, multipliers=(2, 3), norm_groups=8)


def test_the_encoder_in_bfloat16_gives_nearly_the_same_tokens() -> None:
    tokenizer = loud_tokenizer(SCHEDULE).eval()
    images = random_images(tokenizer, batch=8)
    exact, rounded = tokenizer.encode(images), tokenizer.encode(images, precision="bfloat16")
    assert 0.7 < (exact == rounded).float().mean() < 1
    with torch.autocast("cpu", torch.bfloat16):  # what surrounds it does not count
        assert tokenizer.encode(images).equal(exact)
