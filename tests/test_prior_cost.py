"""What a prior costs by its settings is what it has and does: parameters, and matrix products that are
counted.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models_for_tests import CODE_DIM, PRIOR_KINDS, VOCAB, model_settings
from nextscale.generate.folder import build_prior
from nextscale.prior import next_scale
from nextscale.prior.cost import Cost, cost
from nextscale.prior.next_token import NextTokenPrior
from nextscale.scales import ScaleSchedule

KINDS = ("next_scale", "next_token", "diffusion")


def _case(kind: str, **prior: Any) -> tuple[Cost, torch.nn.Module]:
    sizes = ((3, 4),) if kind == "next_token" else ((1, 1), (2, 3), (3, 4))
    settings = model_settings(sizes=sizes, prior={"kind": kind, "mlp_ratio": 2.5, **prior})
    counted = cost(settings.prior, settings.schedule, vocab_size=VOCAB, code_dim=CODE_DIM, num_classes=10)
    return counted, build_prior(settings)


@pytest.mark.parametrize("options", PRIOR_KINDS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_parameters(kind: str, options: dict[str, Any]) -> None:
    counted, prior = _case(kind, **options)
    assert counted.parameters == sum(parameter.numel() for parameter in prior.parameters())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_operations(kind: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_scale, "num_masked", lambda *_: 0)  # what a mask hides does not count
    counted, prior = _case(kind, shared_adaln=shared)
    labels = torch.zeros(1, dtype=torch.int64)
    inputs = {
        "next_scale": (torch.zeros(1, 18, CODE_DIM),), "next_token": (torch.zeros(1, 12, dtype=torch.int64),),
        "diffusion": (torch.zeros(1, 12, CODE_DIM), labels),
    }[kind]  # fmt: skip
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = prior(labels, *inputs)
    seen = counter.get_total_flops()
    if isinstance(prior, NextTokenPrior):  # the plain kernel multiplies what the mask then hides
        seen -= 2 * (2 * 2 * 32) * (12 * 12 - 12 * 13 // 2)
    assert counted.forward_flops == seen and output.requires_grad
    assert counted.training_flops == 3 * seen


def test_a_next_scale_pass_looks_at_more_tokens_than_the_others() -> None:
    """Of the same blocks and the same last map."""
    flops = {}
    for kind in KINDS:
        sizes = ((8, 8),) if kind == "next_token" else ScaleSchedule.square([1, 2, 3, 4, 6, 8]).sizes
        settings = model_settings(sizes=sizes, prior={"kind": kind, "depth": 5, "model_dim": 256})
        flops[kind] = cost(
            settings.prior, settings.schedule, vocab_size=VOCAB, code_dim=CODE_DIM, num_classes=10
        ).forward_flops
    assert 1.9 < flops["next_scale"] / flops["next_token"] < 2.2
    assert 1.9 < flops["next_scale"] / flops["diffusion"] < 2.2
