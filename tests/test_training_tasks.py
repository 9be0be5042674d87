"""What the tasks of tokenizer and prior do with a batch: losses, idle codes, class dropout."""

from __future__ import annotations

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
from nextscale.train.prior_task import PriorTask
from nextscale.train.settings import PriorRun, TokenizerRun
from nextscale.train.tokenizer_task import TokenizerTask

CPU = torch.device("cpu")


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
        used = task.codes.totals["code_counts_V"].nonzero().flatten()
        task.after_step(step)
        assert task.codes.idle_steps_V[:40].tolist() == [step + 1 if step < 3 else 0] * 40
    moved = _code(task)[:40].detach()
    noise = 0.1 * before.std(dim=0)
    distance = ((moved[:, None] - before[used]) / noise).abs().amax(dim=2).amin(dim=1)
    assert (distance < 6).all() and len(moved.unique(dim=0)) == 40
    assert torch.equal(_code(task)[used], before[used])


def test_idle_codes_may_stay() -> None:
    task = _tokenizer_task(reset_after=0)
    before = _code(task).detach().clone()
    task.loss(next(iter(task.batches(range(1)))))
    task.codes.idle_steps_V += 1000
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


def _wide_task(**losses: Any) -> TokenizerTask:
    """Of 16 pixels a side: the perceptual network needs 9."""
    torch.manual_seed(0)
    settings = model_settings(levels=3)
    run = TokenizerRun(schedule=settings.schedule, tokenizer=settings.tokenizer, losses=losses)
    return TokenizerTask(run, source=MemorySource(6), validation=MemorySource(3), device=CPU)


def test_the_perceptual_loss_pulls_at_the_tokenizer_and_is_no_part_of_it() -> None:
    plain, seeing = _wide_task(), _wide_task(perceptual=2.0)
    assert seeing.module.state_dict().keys() == plain.module.state_dict().keys()
    batch = next(iter(plain.batches(range(1))))
    losses = []
    for task in (plain, seeing):
        task.module.train()
        loss, numbers = task.loss(batch)
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0] + 2.0 * float(numbers["perceptual"].detach()), rel=1e-5)
    assert "perceptual" not in plain.loss(batch)[1]
    one, other = (task.tokenizer.decoder.conv_in.weight.grad for task in (plain, seeing))
    assert not torch.allclose(one, other, rtol=0.1)
    network = seeing.reconstruction.perceptual
    assert network is not None and not any(part.training for part in network.modules())


def test_images_too_small_for_the_perceptual_network_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"at least 9 pixels a side, given \(8, 8\)"):
        _tokenizer_task(perceptual=1.0)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "model"
    settings = model_settings().model_copy(update={"prior": None})
    Generator(settings, random_generator(model_settings()).tokenizer).save(folder)
    return folder


def _prior_task(tokenizer_folder: Path, folder: Path, **prior: Any) -> PriorTask:
    run = PriorRun(
        tokenizer_from=str(tokenizer_folder), data={"enlarge": 1.0},
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
    assert torch.equal(dropped, uniforms[:, 0] < 0.4) and 50 < dropped.sum() < 110
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


def test_sample_pictures_show_eight_of_each_class(tokenizer_folder: Path, tmp_path: Path) -> None:
    task = _prior_task(tokenizer_folder, tmp_path)
    picture = task.picture(task.module)
    assert picture.dtype == numpy.uint8 and picture.shape == (3 * 66 + 2, 8 * 66 + 2, 3)
