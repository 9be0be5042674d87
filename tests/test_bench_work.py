"""What the benchmarks count is what the modules do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models_for_tests import CODE_DIM, model_settings, random_generator
from nextscale.prior.next_scale import NextScalePrior
from nextscale.studies.bench.clock import resident_bytes, time_in_turn
from nextscale.studies.bench.dit import dit_step
from nextscale.studies.bench.models import (
    num_parameters,
    num_tokenizer_parameters,
    one_map,
    random_prior,
    random_tokenizer,
)
from nextscale.studies.bench.work import (
    Limits,
    Pass,
    decoder_pass,
    encoder_pass,
    generation_parts,
    quantizer_pass,
    scale_flops,
    search_pass,
    training_pass,
    transformer_passes,
)
from nextscale.tokenizer.model import Tokenizer
from nextscale.train.cost import prior_pass

CPU = torch.device("cpu")


def _counted(work: Any) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("shared", [False, True])
def test_operations_of_each_scale(shared: bool) -> None:
    settings = model_settings(prior={"shared_adaln": shared})
    prior = random_prior(settings, CPU)
    assert isinstance(prior, NextScalePrior)
    quantizer, schedule = settings.tokenizer.quantizer, settings.schedule
    found = scale_flops(settings.prior, schedule, quantizer)
    assert sum(found) == 2 * prior_pass(settings.prior, schedule, quantizer)
    condition, cache = prior.condition(torch.tensor([1])), prior.new_cache(1)
    seen = []
    for scale, cells in enumerate(schedule.num_cells):
        inputs = torch.zeros(1, cells, CODE_DIM) if scale else None
        seen.append(_counted(lambda scale=scale, inputs=inputs: prior.step(scale, condition, inputs, cache)))
    assert found[1:] == seen[1:]
    assert found[0] == seen[0] + _counted(lambda: prior.condition(torch.tensor([1])))


@pytest.mark.parametrize("guided", [False, True])
def test_operations_of_a_whole_generation(guided: bool) -> None:
    settings = model_settings(sampling={"guidance": 2.0 if guided else 0.0}, phi_of_scale=None)
    generator = random_generator(settings)
    parts = generation_parts(
        settings.prior, settings.schedule, settings.tokenizer, batch=3, guided=guided, dtype="float32"
    )
    counted = sum(item.flops for passes in parts.values() for item in passes)
    assert set(parts) == {"transformer", "quantizer", "decoder"}
    seen = _counted(lambda: generator([0, 1, 2], seeds=[0, 1, 2]))
    assert seen == counted
    assert len(parts["transformer"]) == settings.schedule.num_scales


def test_operations_token_by_token() -> None:
    settings = one_map(model_settings(sampling={"guidance": 2.0}), {"kind": "next_token", "depth": 2,
                       "model_dim": 32, "num_heads": 4})  # fmt: skip
    passes = transformer_passes(
        settings.prior, settings.schedule, settings.tokenizer.quantizer, batch=2, guided=False,
        dtype="bfloat16",
    )  # fmt: skip
    assert len(passes) == settings.schedule.num_tokens == 16
    assert passes[-1].num_bytes > passes[1].num_bytes and passes[0].num_bytes > passes[1].num_bytes
    whole = 2 * prior_pass(settings.prior, settings.schedule, settings.tokenizer.quantizer) * 2
    assert sum(item.flops for item in passes) == pytest.approx(whole, rel=0.001)


def test_operations_of_the_tokenizer() -> None:
    settings = model_settings(levels=3)
    tokenizer, schedule = Tokenizer(settings.tokenizer, settings.schedule).eval(), settings.schedule
    images = torch.zeros(2, 3, *tokenizer.image_size)
    with torch.no_grad():
        features = tokenizer.features(images)
        encoder = encoder_pass(settings.tokenizer, schedule, batch=2, dtype="float32")
        assert encoder.flops == _counted(lambda: tokenizer.features(images))
        decoder = decoder_pass(settings.tokenizer, schedule, batch=2, dtype="bfloat16")
        assert decoder.flops == _counted(lambda: tokenizer.decode_features(features))
        search = search_pass(settings.tokenizer.quantizer, schedule, batch=2)
        assert search.flops == _counted(lambda: tokenizer.quantizer.encode(features))
    twice = encoder_pass(settings.tokenizer, schedule, batch=2, dtype="bfloat16")
    assert 2 * twice.num_bytes == encoder.num_bytes
    smooth = quantizer_pass(settings.tokenizer.quantizer, schedule, batch=2)
    assert 0 < smooth.flops < search.flops and smooth.dtype == search.dtype == "float32"


def test_training_is_three_passes_and_more() -> None:
    settings = model_settings()
    work = training_pass(
        settings.prior, settings.schedule, settings.tokenizer, batch=2, dtype="bfloat16",
        num_parameters=num_parameters(settings),
    )  # fmt: skip
    passes = 2 * 3 * 2 * prior_pass(settings.prior, settings.schedule, settings.tokenizer.quantizer)
    assert passes < work.flops < 1.2 * passes
    assert work.num_bytes > 34 * num_parameters(settings)


@pytest.mark.parametrize("theirs", [False, True])
def test_a_step_of_dit(theirs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if theirs:
        pytest.importorskip("diffusers")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    settings = one_map(model_settings(), {"kind": "diffusion", "depth": 2, "model_dim": 64, "num_heads": 4})
    step, name = dit_step(settings, dtype="bfloat16", device=CPU)
    assert name == f"DiT ({'diffusers' if theirs else 'own'})"
    step(1)
    noisy, counted = step(2), transformer_passes(
        settings.prior, settings.schedule, settings.tokenizer.quantizer, batch=2, guided=True,
        dtype="bfloat16", num_steps=3,
    )  # fmt: skip
    assert len(noisy) == 2 and bool(torch.isfinite(noisy).all()) and len(counted) == 3
    assert _counted(lambda: step(2)) == pytest.approx(counted[0].flops, rel=0 if not theirs else 0.1)


def test_the_limit_is_the_larger_of_two_times() -> None:
    limits = Limits({"float32": 10.0, "bfloat16": 100.0}, copy=5.0)
    passes = [Pass(20, 5, "float32"), Pass(100, 20, "bfloat16")]
    assert limits.seconds(passes) == 5.0  # of memory: 25 bytes; products take 3
    assert limits.seconds_by_pass(passes) == 2.0 + 4.0


def test_parameters_of_models_with_random_weights() -> None:
    settings = model_settings()
    prior, tokenizer = random_prior(settings, CPU), random_tokenizer(settings, CPU)
    assert num_parameters(settings) == sum(item.numel() for item in prior.parameters())
    assert num_tokenizer_parameters(settings) == sum(item.numel() for item in tokenizer.parameters())
    for module in (prior, tokenizer):
        assert all(bool(torch.isfinite(item).all()) for item in module.state_dict().values())
    images = tokenizer.decode(torch.randint(48, (2, settings.schedule.num_tokens)))
    assert 0.01 < float(images.std()) < 1


def test_timing_in_turn() -> None:
    calls: list[str] = []
    ways = {"one": lambda: calls.append("one"), "two": lambda: calls.append("two")}
    timings, limits = time_in_turn(ways, rounds=3, device=CPU, dtypes=["float32", "int8"])
    assert calls == ["one", "two", "one", "two", "two", "one", "one", "two"]  # once to warm up
    assert set(timings) == {"one", "two"} and len(timings["one"].all_seconds) == 3
    assert timings["one"].peak_bytes is None
    assert 1e9 < limits.flops["float32"] < 1e14 and limits.flops["int8"] > 1e8 and 1e8 < limits.copy < 1e13
    assert timings["one"].speedup_over(timings["one"]) == 1.0


def test_resident_memory() -> None:
    before = resident_bytes()
    block = torch.ones(50_000_000, dtype=torch.uint8)
    assert resident_bytes() - before > 40_000_000
    del block
    assert resident_bytes(most=True) >= before + 40_000_000
