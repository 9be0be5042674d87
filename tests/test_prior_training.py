"""The next-scale transformer in training: gradients, and branches that are dropped at random."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models_for_tests import (
    CLASSES,
    CODE_DIM,
    PRIOR_KINDS,
    SCHEDULE,
    VOCAB,
    lone_prior,
    prior_inputs,
)
from nextscale.prior.next_scale import NextScalePrior
from nextscale.prior.settings import PriorSettings
from nextscale.prior.transformer import drop_path_factors
from nextscale.scales import ScaleSchedule

WIDE = ScaleSchedule(sizes=((1, 2), (2, 3), (3, 5)))


@pytest.mark.parametrize("loud", [False, True], ids=["fresh", "loud"])
@pytest.mark.parametrize("kind", PRIOR_KINDS, ids=str)
def test_every_parameter_gets_a_gradient(kind: dict[str, Any], loud: bool) -> None:
    prior = lone_prior(SCHEDULE, loud=loud, **kind)
    _, inputs = prior_inputs(SCHEDULE)
    labels = torch.arange(len(CLASSES) + 1)
    inputs = inputs[:1].expand(len(labels), -1, -1) + 0.1 * torch.randn(len(labels), 29, CODE_DIM)
    logits = prior(labels, inputs)
    targets = torch.randint(VOCAB, logits.shape[:2])
    nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    for name, parameter in prior.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        rows = parameter.grad.flatten(1) if parameter.ndim > 1 else parameter.grad[:, None]
        assert (rows.abs().sum(dim=1) > 0).float().mean() > 0.9, name


def _branches(prior: NextScalePrior, labels: Tensor, inputs: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    for block in range(2):
        for branch in range(2):
            keep = torch.ones(2, 2, len(labels))
            keep[block, branch] = 0
            yield block, branch, prior(labels, inputs, keep_D2B=keep)


def test_kept_branches_change_nothing_and_dropped_ones_do_not_act() -> None:
    prior = lone_prior(SCHEDULE)
    labels, inputs = prior_inputs(SCHEDULE)
    plain = prior(labels, inputs)
    assert torch.equal(prior(labels, inputs, keep_D2B=torch.ones(2, 2, 3)), plain)
    for block, branch, dropped in _branches(prior, labels, inputs):
        assert (dropped - plain).abs().max() > 1e-2
        part = prior.blocks[block].mlp.fc2 if branch else prior.blocks[block].attention.proj
        kept = {name: value.clone() for name, value in part.state_dict().items()}
        with torch.no_grad():
            part.weight.zero_(), part.bias.zero_()
        assert torch.allclose(prior(labels, inputs), dropped, atol=1e-6)
        part.load_state_dict(kept)
    one = torch.ones(2, 2, 3)
    one[:, :, 1] = 0  # one sample's branches only
    moved = (prior(labels, inputs, keep_D2B=one) - plain).abs().amax(dim=(1, 2))
    assert moved[1] > 1e-2 and moved[0] == moved[2] == 0


def test_drop_path_is_linear_in_the_block_and_keeps_the_mean() -> None:
    settings = PriorSettings(depth=5, drop_path=0.4)
    factors = drop_path_factors(settings, torch.rand(20_000, 80))
    assert factors is not None and factors.shape == (5, 2, 20_000)
    rates = [0, 0.1, 0.2, 0.3, 0.4]
    for block, rate in enumerate(rates):
        assert factors[block].eq(0).float().mean().item() == pytest.approx(rate, abs=0.01)
        assert factors[block].mean().item() == pytest.approx(1, abs=0.02)
        assert factors[block].amax().item() == pytest.approx(1 / (1 - rate))
    both = factors[4].eq(0).all(dim=0).float().mean().item()
    assert both == pytest.approx(0.16, abs=0.01)  # the two branches of a block are dropped independently


def test_no_drop_path() -> None:
    assert drop_path_factors(PriorSettings(depth=5, drop_path=0.0), torch.rand(4, 80)) is None


def test_a_sample_decides_its_own_drop_path() -> None:
    settings, uniforms = PriorSettings(depth=3, drop_path=0.5), torch.rand(6, 80)
    factors = drop_path_factors(settings, uniforms)
    alone = drop_path_factors(settings, uniforms[2:3])
    assert factors is not None and alone is not None
    assert torch.equal(factors[:, :, 2:3], alone)


def test_the_deepest_prior_has_numbers_for_class_dropout_left() -> None:
    """A batch brings 80 numbers a sample: two per block from the front, the last one for the class."""
    factors = drop_path_factors(PriorSettings(depth=36), torch.rand(2, 80))
    assert factors is not None and factors.shape == (36, 2, 2)
