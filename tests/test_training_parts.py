"""Parts of training: rates as functions of the step, averages, groups, what each task does with a batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from images import MemorySource
from models_for_tests import VOCAB, make_loud, model_settings, random_generator
from nextscale import Generator
from nextscale.data.loader import Batch
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
from nextscale.train.settings import OptimizerSettings, PriorRun, TokenizerRun
from nextscale.train.tokenizer_task import TokenizerTask

CPU = torch.device("cpu")


# learning rate and weight decay


def _rate(step: int, **changes: Any) -> float:
    settings = OptimizerSettings(
        **{
            "base_lr": 1.0, "warmup_share": 0.1, "warmup_start": 0.5, "hold_share": 0.2, "final_lr_ratio": 0.1,
            **changes,
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


# tasks


def _tokenizer_task(**losses: Any) -> TokenizerTask:
    settings = model_settings()
    run = TokenizerRun(schedule=settings.schedule, tokenizer=settings.tokenizer, losses=losses)
    return TokenizerTask(run, source=MemorySource(6), validation=MemorySource(3), device=CPU)


def _code(task: TokenizerTask) -> Tensor:
    return task.module.quantizer.codebook.weight


def test_idle_codes_are_moved_beside_used_ones_after_the_set_number_of_steps() -> None:
    task = _tokenizer_task(reset_after=3)
    with torch.no_grad():
        _code(task)[:40] += 100  # far from everything: nobody uses these
    before = _code(task).detach().clone()
    batch = Batch(
        torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64), torch.rand(4, 80), torch.arange(4)
    )
    for step in range(4):
        assert torch.equal(_code(task), before), step
        task.loss(batch)
        assert task.idle_steps_V[:40].tolist() == [step + 1] * 40
        task.after_step(step)
    moved = _code(task)[:40].detach()
    used = before[task.last_tokens.unique()]
    noise = 0.1 * before.std(dim=0)
    distance = ((moved[:, None] - used) / noise).abs().amax(dim=2).amin(dim=1)
    assert (distance < 6).all() and len(moved.unique(dim=0)) == 40
    assert task.idle_steps_V[:40].eq(0).all()
    assert torch.equal(_code(task)[task.last_tokens], before[task.last_tokens])


def test_idle_codes_may_stay() -> None:
    task = _tokenizer_task(reset_after=0)
    before = _code(task).detach().clone()
    task.loss(next(iter(task.batches(range(1)))))
    task.idle_steps_V += 1000
    task.after_step(0)
    assert torch.equal(_code(task), before)


def test_each_weight_of_the_tokenizers_loss_counts() -> None:
    batch = next(iter(_tokenizer_task().batches(range(1))))
    weights = {"l1": 2.0, "l2": 3.0, "codebook": 5.0, "commitment": 7.0}
    parts = {}
    for name in weights:
        torch.manual_seed(0)
        loss, numbers = _tokenizer_task(**{key: float(key == name) for key in weights}).loss(batch)
        parts[name] = float(loss.detach())
        logged = name if name in numbers else f"{name}_loss"
        assert parts[name] == pytest.approx(float(numbers[logged].detach())) and parts[name] > 0
    torch.manual_seed(0)
    loss, _ = _tokenizer_task(**weights).loss(batch)
    assert float(loss.detach()) == pytest.approx(
        sum(weights[name] * parts[name] for name in weights), rel=1e-5
    )


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "model"
    settings = model_settings().model_copy(update={"prior": None})
    Generator(settings, random_generator(model_settings()).tokenizer).save(folder)
    return folder


def _prior_task(
    tokenizer_folder: Path, folder: Path, *, cache_tokens: bool = False, **prior: Any
) -> PriorTask:
    run = PriorRun(
        tokenizer_from=str(tokenizer_folder), cache_tokens=cache_tokens, data={"enlarge": 1.0},
        prior={"depth": 2, "model_dim": 16, "num_heads": 2, "drop_path": 0.0, **prior},
        loop={"batch_size": 5}, sampling={"guidance": 1.5},
    )  # fmt: skip
    task = PriorTask(run, source=MemorySource(7), validation=MemorySource(3), device=CPU, folder=folder)
    make_loud(task.module)
    return task


def test_class_dropout_trains_the_unconditional_class(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = _prior_task(tokenizer_folder, tmp_path, class_dropout=0.4)
    seen: list[Tensor] = []
    forward = task.module.forward
    monkeypatch.setattr(
        task.module,
        "forward",
        lambda labels, *rest, **named: (seen.append(labels), forward(labels, *rest, **named))[1],
    )
    uniforms = torch.rand(200, 80)
    tokens = torch.randint(VOCAB, (200, 30))
    task.loss(Batch(tokens, torch.arange(200) % 3, uniforms, torch.arange(200)))
    dropped = seen[0] == 3
    assert torch.equal(dropped, uniforms[:, -1] < 0.4) and 50 < dropped.sum() < 110
    assert torch.equal(seen[0][~dropped], (torch.arange(200) % 3)[~dropped])


def test_the_priors_loss_is_the_cross_entropy_of_all_tokens(tokenizer_folder: Path, tmp_path: Path) -> None:
    task = _prior_task(tokenizer_folder, tmp_path, class_dropout=0.0)
    batch = next(iter(task.batches(range(1))))
    loss, numbers = task.loss(batch)
    tokens = task.tokenizer.encode(batch.items)
    logits = task.module(batch.labels_B, task.tokenizer.teacher_inputs(tokens))
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    last = nn.functional.cross_entropy(logits[:, 14:].flatten(0, 1), tokens[:, 14:].flatten())
    assert numbers["scale_loss"][3].item() == pytest.approx(last.item(), rel=1e-5)


def test_stochastic_depth_acts_in_training(tokenizer_folder: Path, tmp_path: Path) -> None:
    task = _prior_task(tokenizer_folder, tmp_path, class_dropout=0.0)
    leaky = _prior_task(tokenizer_folder, tmp_path, class_dropout=0.0, drop_path=0.9)
    leaky.module.load_state_dict(task.module.state_dict())
    batch = next(iter(task.batches(range(1))))
    assert task.loss(batch)[0].item() != pytest.approx(leaky.loss(batch)[0].item(), rel=1e-3)


def test_cached_tokens_are_those_of_the_images_and_are_kept(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = _prior_task(tokenizer_folder, tmp_path, cache_tokens=True)
    fresh = _prior_task(tokenizer_folder, tmp_path)
    for mine, given in zip(cached.batches(range(2, 5)), fresh.batches(range(2, 5)), strict=True):
        assert mine.items.dtype == torch.int64 and torch.equal(
            mine.items, fresh.tokenizer.encode(given.items)
        )
        assert torch.equal(mine.labels_B, given.labels_B) and torch.equal(mine.uniforms_BR, given.uniforms_BR)
    again = _prior_task(tokenizer_folder, tmp_path, cache_tokens=True)
    monkeypatch.setattr(again, "_encode", lambda _: pytest.fail("encoded again"))
    next(iter(again.batches(range(1))))
    again.tokenizer_digest = "that of another tokenizer"
    with pytest.raises(pytest.fail.Exception, match="encoded again"):
        next(iter(again.batches(range(1))))


def test_sample_pictures_show_eight_of_each_class(tokenizer_folder: Path, tmp_path: Path) -> None:
    task = _prior_task(tokenizer_folder, tmp_path)
    picture = task.picture(task.module)
    assert picture.dtype == numpy.uint8 and picture.shape == (3 * 66 + 2, 8 * 66 + 2, 3)


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
