"""Generating in bfloat16: blocks for sampling against the plain ones, what stays float32, what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from models_for_tests import (
    PRIOR_KINDS,
    SCHEDULE,
    lone_prior,
    model_settings,
    prior_inputs,
    random_generator,
    tokens_of,
)
from nextscale.generate import precision
from nextscale.generate.generator import Generator
from nextscale.prior.sampling_block import Product, SamplingBlock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_generator().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("changes", PRIOR_KINDS, ids=str)
@torch.no_grad()
def test_sampling_blocks_against_blocks(changes: dict[str, Any]) -> None:
    prior = lone_prior(SCHEDULE, **changes).eval()
    labels_B, inputs_BLC = prior_inputs(SCHEDULE)
    expected = prior(labels_B, inputs_BLC)
    for index, block in enumerate(prior.blocks):
        prior.blocks[index] = SamplingBlock(block)
    torch.testing.assert_close(prior(labels_B, inputs_BLC), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-5)])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 40])
@torch.no_grad()
def test_packed_products_against_plain_ones(rows: int, gelu: bool, dtype: torch.dtype, error: float) -> None:
    weight, bias, x = torch.randn(24, 16), torch.randn(24), torch.randn(2, rows, 16)
    weight, bias, x = weight.to(dtype), bias.to(dtype), x.to(dtype)
    expected = F.linear(x.float(), weight.float(), bias.float())
    product = Product(weight, bias, gelu=gelu)
    assert product.packed and product(x).dtype == dtype
    expected = F.gelu(expected, approximate="tanh") if gelu else expected
    torch.testing.assert_close(product(x).float(), expected, rtol=error, atol=error)
    with patch.object(torch.backends.mkldnn, "is_available", return_value=False):
        plain = Product(weight, bias, gelu=gelu)
    assert not plain.packed
    torch.testing.assert_close(plain(x).float(), expected, rtol=error, atol=error)


def test_auto_without_bfloat16_draws_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: False)
    exact, fast = Generator.load(folder), Generator.load(folder, dtype="auto")
    assert isinstance(fast.prior.blocks[0], SamplingBlock)
    expected, given = exact([3, "frog", None], seeds=[0, 1, 2]), fast([3, "frog", None], seeds=[0, 1, 2])
    assert torch.equal(tokens_of(given), tokens_of(expected))
    torch.testing.assert_close(given.images_BCHW, expected.images_BCHW, rtol=1e-4, atol=1e-4)
    assert torch.equal(exact.lay_out()([3], seeds=[0]).images_BCHW, fast([3], seeds=[0]).images_BCHW)


@pytest.mark.parametrize("changes", PRIOR_KINDS, ids=str)
@torch.no_grad()
def test_logits_in_bfloat16(changes: dict[str, Any]) -> None:
    prior = lone_prior(SCHEDULE, **changes).eval()
    labels_B, inputs_BLC = prior_inputs(SCHEDULE)
    expected = prior(labels_B, inputs_BLC)
    precision.speed_up_prior(prior, torch.bfloat16)
    given = prior(labels_B, inputs_BLC)
    assert given.dtype == torch.float32 and not torch.equal(given, expected)
    assert ((given - expected).norm() / expected.norm()) < 0.03


def test_images_in_bfloat16(folder: Path) -> None:
    exact, fast = Generator.load(folder), Generator.load(folder, dtype="bfloat16")
    result = exact([3, "frog"], seeds=[0, 1])
    images_BCHW = fast.tokenizer.decode(tokens_of(result))
    assert images_BCHW.dtype == torch.float32
    assert (images_BCHW - result.images_BCHW).norm() / result.images_BCHW.norm() < 0.03
    drawn = fast([3, "frog"], seeds=[0, 1])
    assert drawn.images_BCHW.dtype == torch.float32
    assert torch.equal(tokens_of(drawn), tokens_of(fast([3, "frog"], seeds=[0, 1])))
    alike = (tokens_of(drawn) == tokens_of(result)).float().mean()
    assert alike > 0.5  # a token drawn otherwise changes all finer ones


@pytest.mark.parametrize("kind", ["next_token", "diffusion"])
def test_other_families_in_bfloat16(tmp_path: Path, kind: str) -> None:
    settings = model_settings(sizes=[(4, 4)], prior={"kind": kind}, num_phis=1)
    random_generator(settings).save(tmp_path / "model")
    draw = partial(Generator.__call__, labels=[1], seeds=[0])
    exact, fast = (draw(Generator.load(tmp_path / "model", dtype=name)) for name in ("float32", "bfloat16"))
    assert fast.images_BCHW.dtype == torch.float32 and not torch.equal(fast.images_BCHW, exact.images_BCHW)


def test_what_stays_float32(folder: Path) -> None:
    fast = Generator.load(folder, dtype="bfloat16")
    assert fast.dtype == torch.bfloat16
    assert {value.dtype for value in fast.tokenizer.quantizer.parameters()} == {torch.float32}
    assert {value.dtype for value in fast.tokenizer.decoder.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in fast.prior.parameters()} == {torch.bfloat16}
    assert fast.prior.new_cache(1).tensor.dtype == torch.bfloat16


def test_auto_asks_the_hardware(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for able, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device, able=able: able)
        assert Generator.load(folder, dtype="auto").dtype == expected
    assert Generator.load(folder).dtype == torch.float32


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype 'half' is unknown: expected auto, float32, bfloat16"):
        Generator.load(folder, dtype="half")  # type: ignore[arg-type]
    dtypes: list[precision.Dtype] = ["bfloat16", "auto"]
    for dtype in dtypes:
        fast = Generator.load(folder, dtype=dtype)
        with pytest.raises(ValueError, match="cannot be saved: load with dtype='float32'"):
            fast.save(tmp_path / "other")
        with pytest.raises(ValueError, match="load them with device='meta'"):
            fast.to("meta")
