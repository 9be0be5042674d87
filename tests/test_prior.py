"""The next-scale transformer: sizes from depth, who may look at whom, steps against the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models_for_tests import (
    CLASSES,
    PRIOR_KINDS,
    SCHEDULE,
    VOCAB,
    lone_prior,
    prior_inputs,
    random_generator,
)
from nextscale.prior import next_scale
from nextscale.prior.next_scale import NextScalePrior, block_causal_mask
from nextscale.prior.settings import PriorSettings
from nextscale.scales import ScaleSchedule

WIDE = ScaleSchedule(sizes=((1, 2), (2, 3), (3, 5)))


# sizes


def test_depth_decides_the_sizes() -> None:
    for depth in (16, 20, 24, 30, 36):
        settings = PriorSettings(depth=depth)
        assert (settings.width, settings.heads) == (64 * depth, depth)
        assert settings.drop_path_rate == pytest.approx(0.1 * depth / 24)
    given = PriorSettings(depth=16, model_dim=96, num_heads=3, drop_path=0.0)
    assert (given.width, given.heads, given.drop_path_rate) == (96, 3, 0)


@pytest.mark.parametrize(
    ("depth", "shared", "expected"),
    [(16, False, 73_728), (20, False, 73_728), (24, False, 73_728), (30, False, 73_728), (36, True, 49_152)],
)
def test_parameters_grow_with_the_cube_of_depth(depth: int, shared: bool, expected: int) -> None:
    """73,728 d^3, or 49,152 d^3 where blocks share their modulation; tables and head add a few percent."""
    with torch.device("meta"):
        prior = NextScalePrior(
            PriorSettings(depth=depth, shared_adaln=shared),
            ScaleSchedule.square([1, 2, 3, 4, 5, 6, 8, 10, 13, 16]),
            vocab_size=4096, code_dim=32, num_classes=1000,
        )  # fmt: skip
    count = sum(parameter.numel() for parameter in prior.parameters())
    assert 1 < count / (expected * depth**3) < 1.03


def test_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ValueError, match="model_dim 32 is not divisible by num_heads 5"):
        lone_prior(SCHEDULE, num_heads=5)


def test_the_mlp_and_the_norm_follow_their_settings() -> None:
    assert lone_prior(SCHEDULE, mlp_ratio=2.5).blocks[0].mlp.fc1.out_features == 80
    labels, inputs = prior_inputs(SCHEDULE)
    torch.manual_seed(1)
    first = lone_prior(SCHEDULE, norm_eps=1e-6)
    second = lone_prior(SCHEDULE, norm_eps=0.5)
    second.load_state_dict(first.state_dict())
    assert (first(labels, inputs) - second(labels, inputs)).abs().max() > 1e-2


def test_fresh_weights_start_as_the_released_trainer_does() -> None:
    """Logits near zero, so the first loss is log V; gates nearly shut, so blocks hardly act."""
    prior = lone_prior(SCHEDULE, loud=False, gate_init=1e-3, depth=4)
    labels, inputs = prior_inputs(SCHEDULE)
    logits = prior(labels, inputs)
    assert logits.abs().max() < 0.1
    closed = prior(labels, inputs, keep_D2B=torch.zeros(4, 2, 3))
    assert 0 < (logits - closed).abs().max() < 1e-3
    std = (1 / 32 / 3) ** 0.5
    assert prior.blocks[0].attention.qkv.weight.std().item() == pytest.approx(std, rel=0.1)
    assert prior.blocks[0].mlp.fc2.weight.std().item() == pytest.approx(std / 8**0.5, rel=0.1)
    assert prior.head.weight.std().item() == pytest.approx(0.02 * std, rel=0.1)
    gates, scales = prior.blocks[0].modulation.weight[:64], prior.blocks[0].modulation.weight[64:]
    assert gates.std().item() == pytest.approx(1e-3 * std, rel=0.1)
    assert scales.std().item() == pytest.approx(0.5 * std, rel=0.1)


@pytest.mark.parametrize("shared", [False, True])
def test_the_initial_gate_is_a_setting(shared: bool) -> None:
    labels, inputs = prior_inputs(SCHEDULE)
    effects = []
    for gate_init in (1e-3, 1e-1):
        torch.manual_seed(3)
        prior = lone_prior(SCHEDULE, loud=False, gate_init=gate_init, shared_adaln=shared)
        nn.init.normal_(prior.head.weight)
        if prior.shared_modulation is not None:
            nn.init.zeros_(prior.shared_modulation.weight)  # the offsets alone then make the gates
        closed = prior(labels, inputs, keep_D2B=torch.zeros(2, 2, 3))
        effects.append(float((prior(labels, inputs) - closed).detach().abs().mean()))
    assert effects[1] / effects[0] == pytest.approx(100, rel=0.3)


# who looks at whom


@pytest.mark.parametrize("kind", PRIOR_KINDS, ids=str)
def test_a_scale_decides_nothing_before_itself(kind: dict[str, Any]) -> None:
    """Changing what scale k reads moves the logits from k on and none before."""
    prior = lone_prior(SCHEDULE, **kind)
    labels, inputs = prior_inputs(SCHEDULE)
    logits = prior(labels, inputs)
    for scale in range(1, 4):
        changed = inputs.clone()
        first = SCHEDULE.num_cells[0]
        changed[:, SCHEDULE.offsets[scale] - first : SCHEDULE.offsets[scale + 1] - first] += 1
        moved = (prior(labels, changed) - logits).abs().amax(dim=(0, 2))
        assert moved[: SCHEDULE.offsets[scale]].max() == 0
        assert all(part.max() > 1e-3 for part in moved[SCHEDULE.offsets[scale] :].split(1))


@torch.no_grad()
def test_tokens_of_a_scale_change_only_what_is_finer() -> None:
    """The whole way, through the tokenizer: scale k + 1 is the first that reads the tokens of scale k."""
    generator = random_generator()
    labels, tokens = torch.tensor([1, 2, 3]), torch.randint(VOCAB, (3, SCHEDULE.num_tokens))
    logits = generator.prior(labels, generator.tokenizer.teacher_inputs(tokens))
    for scale in range(4):
        changed = tokens.clone()
        changed[:, SCHEDULE.slice(scale)] = (changed[:, SCHEDULE.slice(scale)] + 7) % VOCAB
        other = generator.prior(labels, generator.tokenizer.teacher_inputs(changed))
        end = SCHEDULE.offsets[scale + 1]
        assert torch.equal(other[:, :end], logits[:, :end])
        assert scale == 3 or ((other - logits)[:, end:].abs().amax(dim=-1) > 1e-4).all()


def test_cells_of_a_scale_see_each_other() -> None:
    prior = lone_prior(SCHEDULE)
    labels, inputs = prior_inputs(SCHEDULE)
    changed = inputs.clone()
    changed[:, -1] += 1  # the last cell of the last scale
    moved = (prior(labels, changed) - prior(labels, inputs)).abs().amax(dim=(0, 2))
    assert (moved[SCHEDULE.offsets[3] :] > 1e-4).all()


def _dense_mask(schedule: ScaleSchedule) -> Any:
    levels = torch.tensor(schedule.level_ids)
    mask = torch.where(levels[:, None] >= levels[None, :], 0.0, -torch.inf)

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        return ((query @ key.transpose(-2, -1)) * scale + mask).softmax(dim=-1) @ value

    return attend


@pytest.mark.parametrize("schedule", [SCHEDULE, WIDE], ids=["square", "wide"])
@pytest.mark.parametrize("kind", PRIOR_KINDS, ids=str)
def test_against_attention_with_a_dense_mask(
    kind: dict[str, Any], schedule: ScaleSchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = lone_prior(schedule, **kind)
    labels, inputs = prior_inputs(schedule)
    logits = prior(labels, inputs)
    monkeypatch.setattr(prior, "_attend_to_prefixes", _dense_mask(schedule))
    assert torch.allclose(prior(labels, inputs), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "schedule", [SCHEDULE, WIDE, ScaleSchedule.square([3])], ids=["square", "wide", "one"]
)
@pytest.mark.parametrize("kind", PRIOR_KINDS, ids=str)
@torch.no_grad()
def test_step_by_step_against_the_whole(kind: dict[str, Any], schedule: ScaleSchedule) -> None:
    prior = lone_prior(schedule, **kind)
    labels, inputs = prior_inputs(schedule)
    condition, cache = prior.condition(labels), prior.new_cache(3)
    logits = []
    for scale in range(schedule.num_scales):
        place, first = schedule.slice(scale), schedule.num_cells[0]
        given = inputs[:, place.start - first : place.stop - first] if scale else None
        logits.append(prior.step(scale, condition, given, cache))
    assert logits[0].std() > 1
    assert torch.allclose(torch.cat(logits, dim=1), prior(labels, inputs), atol=1e-5, rtol=1e-5)


def test_the_cache_is_as_long_as_the_schedule_and_follows_autocast() -> None:
    prior = lone_prior(SCHEDULE)
    cache = prior.new_cache(5).tensor
    assert cache.shape == (2, 2, 5, 4, 30, 8) and cache.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert prior.new_cache(5).tensor.dtype == torch.bfloat16


def test_rows_of_a_batch_do_not_meet() -> None:
    prior = lone_prior(SCHEDULE)
    labels, inputs = prior_inputs(SCHEDULE)
    whole = prior(labels, inputs)
    for row in range(3):
        alone = prior(labels[row : row + 1], inputs[row : row + 1])
        assert torch.allclose(alone, whole[row : row + 1], atol=1e-5)


def test_labels_matter_and_the_unconditional_class_is_one_of_them() -> None:
    prior = lone_prior(SCHEDULE)
    _, inputs = prior_inputs(SCHEDULE, batch=1)
    logits = torch.cat([prior(torch.tensor([label]), inputs) for label in range(len(CLASSES) + 1)])
    assert prior.unconditional == len(CLASSES)
    assert (torch.cdist(logits.flatten(1), logits.flatten(1)) + torch.eye(11) * 99).min() > 1


def test_inputs_of_another_length() -> None:
    labels, inputs = prior_inputs(SCHEDULE)
    with pytest.raises(ValueError, match=r"expected inputs \(B, 29, C\), given \(3, 28, 6\)"):
        lone_prior(SCHEDULE)(labels, inputs[:, 1:])


def test_large_learned_scales_are_clamped() -> None:
    prior = lone_prior(SCHEDULE)
    labels, inputs = prior_inputs(SCHEDULE)
    logits = []
    for value in (4.7, 50.0):  # log 100 is 4.605
        with torch.no_grad():
            prior.blocks[0].attention.log_scale_N11.fill_(value)
        logits.append(prior(labels, inputs))
    assert torch.equal(*logits) and logits[0].isfinite().all()


def test_bfloat16_is_close_to_float32() -> None:
    prior = lone_prior(SCHEDULE)
    labels, inputs = prior_inputs(SCHEDULE)
    with torch.autocast("cpu", torch.bfloat16):
        half = prior(labels, inputs)
    whole = prior(labels, inputs)
    assert half.dtype == torch.float32
    assert 1e-4 < (half - whole).abs().mean() < 0.1 * whole.std()


def test_one_masked_kernel_is_attention_to_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = lone_prior(WIDE).double()
    schedule = prior.schedule
    query, key, value = torch.randn(3, 2, 4, schedule.num_tokens, 8, dtype=torch.float64)
    assert next_scale.num_masked(prior.offsets, query.device) == schedule.num_scales
    masked = prior._attend_to_prefixes(query, key, value, 0.3)
    monkeypatch.setattr(next_scale, "MOST_MASKED", schedule.num_tokens - 1)
    assert next_scale.num_masked(prior.offsets, query.device) == schedule.num_scales - 1
    assert next_scale.num_masked(prior.offsets, torch.device("cuda")) == 0
    torch.testing.assert_close(masked, prior._attend_to_prefixes(query, key, value, 0.3))
    monkeypatch.setattr(next_scale, "num_masked", lambda *_: 0)
    torch.testing.assert_close(masked, prior._attend_to_prefixes(query, key, value, 0.3))
    levels = torch.tensor(schedule.level_ids)
    assert block_causal_mask(prior.offsets, query.device).equal(levels <= levels[:, None])
