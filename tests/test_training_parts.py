"""Parts of training: rates as functions of the step, averages, groups of parameters, the log."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models_for_tests import model_settings
from nextscale.features.classifier import Classifier
from nextscale.features.settings import ClassifierSettings
from nextscale.generate.folder import build_prior
from nextscale.tokenizer.model import Tokenizer
from nextscale.train.classifier_task import ClassifierTask
from nextscale.train.ema import averaged_copy, update_average
from nextscale.train.logs import RunLog, draw_curves, read_log
from nextscale.train.optimizer import build_optimizer, load_optimizer, optimizer_tensors, set_rates
from nextscale.train.prior_task import PriorTask
from nextscale.train.schedules import learning_rate, weight_decay
from nextscale.train.settings import OptimizerSettings
from nextscale.train.tokenizer_task import TokenizerTask

CPU = torch.device("cpu")


# learning rate and weight decay


def _rate(step: int, **changes: Any) -> float:
    settings = OptimizerSettings(
        **{
            "base_lr": 1.0, "warmup_share": 0.1, "warmup_start": 0.5, "hold_share": 0.2,
            "final_lr_ratio": 0.1, **changes,
        }
    )  # fmt: skip
    return learning_rate(settings, step, num_steps=1001, batch_size=256)


def test_the_learning_rate_at_marked_points() -> None:
    """100.1 steps rise, 179.98 hold, 719.92 fall."""
    assert _rate(0) == 0.5
    assert _rate(50) == pytest.approx(0.5 + 0.5 * 50 / 100.1)
    assert [_rate(step) for step in (101, 200, 279)] == [1, 1, 1]
    assert _rate(281) < 1
    assert _rate(640) == pytest.approx(1 - 0.9 * (539.9 / 899.9 - 0.2) / 0.8)
    assert _rate(1000) == pytest.approx(0.1)


def test_the_cosine_has_the_same_ends_and_middle() -> None:
    middle = round(100.1 + 899.9 * 0.6)
    for step in (0, 50, 200, 1000):
        assert _rate(step, decay="cosine") == pytest.approx(_rate(step))
    assert _rate(middle, decay="cosine") == pytest.approx(_rate(middle), abs=1e-3)
    assert _rate(370, decay="cosine") > _rate(370)


def test_the_learning_rate_grows_with_the_batch() -> None:
    settings = OptimizerSettings(base_lr=1e-4, warmup_share=0.0)
    for batch_size in (64, 256, 1024):
        rate = learning_rate(settings, 0, num_steps=10, batch_size=batch_size)
        assert rate == pytest.approx(1e-4 * batch_size / 256)


def test_runs_of_one_step_have_a_rate() -> None:
    for share in (0.0, 0.5):
        settings = OptimizerSettings(warmup_share=share)
        assert 0 < learning_rate(settings, 0, num_steps=1, batch_size=256) <= 1e-4


def test_weight_decay_is_constant_or_follows_a_cosine() -> None:
    constant = OptimizerSettings(weight_decay=0.05)
    assert [weight_decay(constant, step, num_steps=11) for step in (0, 10)] == [0.05, 0.05]
    moving = OptimizerSettings(weight_decay=0.05, final_weight_decay=0.08)
    assert [weight_decay(moving, step, num_steps=11) for step in (0, 5, 10)] == pytest.approx(
        [0.05, 0.065, 0.08]
    )
    assert weight_decay(moving, 2, num_steps=11) == pytest.approx(
        0.05 + 0.03 * (0.5 - 0.5 * math.cos(math.pi / 5))
    )


# the average


def test_the_average_follows_its_formula() -> None:
    module = nn.Linear(3, 2)
    average = averaged_copy(module)
    assert not any(parameter.requires_grad for parameter in average.parameters()) and not average.training
    expected = module.weight.detach().clone()
    for step in range(30):
        with torch.no_grad():
            module.weight.add_(torch.randn(2, 3))
        update_average(average, module, decay=0.7, step=step)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
        assert torch.allclose(average.weight, expected, atol=1e-5)
    assert average.weight.data_ptr() != module.weight.data_ptr()


def test_no_decay_means_no_average() -> None:
    module, average = nn.Linear(3, 2), nn.Linear(3, 2)
    update_average(average, module, decay=0.0, step=100)
    assert torch.equal(average.weight, module.weight)


def test_buffers_are_averaged_or_copied_too() -> None:
    module = nn.BatchNorm1d(3)
    average = averaged_copy(module)
    for step in range(200):
        module(torch.randn(8, 3) + 5)
        update_average(average, module, decay=0.9, step=step)
    assert torch.allclose(average.running_mean, torch.full((3,), 5.0), atol=0.3)
    assert average.num_batches_tracked == 200


# optimizer


def _modules() -> dict[str, tuple[nn.Module, tuple[str, ...]]]:
    settings = model_settings(prior={"shared_adaln": True})
    classifier = ClassifierSettings(image_size=8, dims=(8, 8), class_names=("a", "b"))
    return {
        "tokenizer": (Tokenizer(settings.tokenizer, settings.schedule), TokenizerTask.no_decay),
        "prior": (build_prior(model_settings()), PriorTask.no_decay),
        "shared": (build_prior(settings), PriorTask.no_decay),
        "classifier": (Classifier(classifier), ClassifierTask.no_decay),
    }


@pytest.mark.parametrize("name", ["tokenizer", "prior", "shared", "classifier"])
def test_groups_cover_every_parameter_once(name: str) -> None:
    module, no_decay = _modules()[name]
    optimizer = build_optimizer(module, OptimizerSettings(), no_decay=no_decay)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in module.parameters()}
    decayed = {
        id(parameter) for group in optimizer.param_groups if group["decayed"] for parameter in group["params"]
    }
    names = {key for key, parameter in module.named_parameters() if id(parameter) in decayed}
    assert names and all(key.endswith("weight") for key in names)
    tables = ("position", "embedding", "codebook", "log_scale", "modulation_offset", "norm")
    assert not [key for key in names if any(word in key for word in tables)]
    spared = {key for key, parameter in module.named_parameters() if parameter.ndim >= 2} - names
    assert all(any(word in key for word in tables) for key in spared)


def test_rates_reach_the_groups_they_belong_to() -> None:
    module, no_decay = _modules()["prior"]
    optimizer = build_optimizer(module, OptimizerSettings(), no_decay=no_decay)
    set_rates(optimizer, lr=0.5, weight_decay=0.25)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (0.5, 0.25),
        (0.5, 0.0),
    ]


def _steps(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        module(images.to(memory_format=torch.channels_last)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"]
)
def test_the_optimizer_goes_on_after_saving_whatever_the_memory_layout(layout: torch.memory_format) -> None:
    """The fused step walks over memory: moments laid out otherwise than their parameter would be mixed up."""
    settings = OptimizerSettings(base_lr=0.1)
    ends = []
    for stop in (None, 3):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3)).to(memory_format=layout)
        optimizer = build_optimizer(module, settings, no_decay=())
        _steps(module, optimizer, range(stop or 6))
        if stop:
            kept = {
                name: value.clone().contiguous()
                for name, value in optimizer_tensors(optimizer, module).items()
            }
            optimizer = build_optimizer(module, settings, no_decay=())
            load_optimizer(optimizer, module, kept)
            _steps(module, optimizer, range(stop, 6))
        ends.append([value.clone() for value in module.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


# the log


def test_a_log_forgets_what_is_repeated_and_survives_a_cut_line(tmp_path: Path) -> None:
    with RunLog(tmp_path, first_step=0) as log:
        for step in (2, 4, 6):
            log.write("train", step, {"loss": 1 / 3})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == [2, 4, 6]
    with RunLog(tmp_path, first_step=4) as log:
        log.write("train", 6, {"loss": 0.5})
    records = read_log(tmp_path / "log.jsonl")
    assert [record["step"] for record in records] == [2, 4, 6]
    assert records[0]["loss"] == 0.333333 and records[2]["loss"] == 0.5


def test_without_numbers_there_are_no_curves(tmp_path: Path) -> None:
    with RunLog(tmp_path, first_step=0) as log:
        log.write("train", 1, {"loss": 1.0})
    draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
