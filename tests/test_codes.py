"""The codebook in training: running means, resets that take them along, sums over micro-batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from images import MemorySource
from models_for_tests import model_settings, random_batch, rows_of
from nextscale.rng import step_generator
from nextscale.train.settings import TokenizerRun
from nextscale.train.tokenizer_task import TokenizerTask

CPU = torch.device("cpu")


def _task(*, reset_after: int = 0, sizes: Any = None, **codes: Any) -> TokenizerTask:
    torch.manual_seed(0)
    settings = model_settings()
    run = TokenizerRun(
        schedule={"sizes": sizes} if sizes else settings.schedule, tokenizer=settings.tokenizer,
        losses={"reset_after": reset_after}, codes=codes,
    )  # fmt: skip
    return TokenizerTask(run, source=MemorySource(6), validation=MemorySource(3), device=CPU)


def _codebook(task: TokenizerTask) -> Tensor:
    return task.module.quantizer.codebook.weight


def test_the_loss_of_the_defaults_is_the_plain_formula_to_the_last_bit() -> None:
    task, batch = _task(), random_batch()
    loss, _ = task.loss(batch)
    decoded, quantized = task.module(batch.items.to(memory_format=torch.channels_last))
    error = decoded.float() - batch.items
    expected = (
        0.2 * error.abs().mean() + 1.0 * error.square().mean()
        + 1.0 * quantized.codebook_loss + 0.25 * quantized.commitment_loss
    )  # fmt: skip
    assert torch.equal(loss, expected)


# running means


def test_codes_follow_the_means_of_what_they_stand_for() -> None:
    task = _task(ema_decay=0.75)
    counts, sums = torch.ones(48), _codebook(task).detach().clone()
    for step in range(4):
        batch = random_batch(seed=step)
        expected = _codebook(task).detach().clone()
        quantized = task.module(batch.items)[1]
        tokens, targets = quantized.tokens_BL.flatten(), quantized.targets_BLC.flatten(0, 1)
        for code in range(48):
            mine = targets[tokens == code]
            counts[code] = 0.75 * counts[code] + 0.25 * len(mine)
            sums[code] = 0.75 * sums[code] + 0.25 * mine.sum(dim=0)
            expected[code] = sums[code] / counts[code]
        task.loss(batch)
        task.after_step(step)
        assert torch.allclose(_codebook(task), expected, atol=1e-5)
    used = tokens.unique()
    assert 1 < len(used) < 48


def test_codes_that_follow_means_get_no_gradient_but_phis_do() -> None:
    task = _task(ema_decay=0.9)
    task.loss(random_batch())[0].backward()
    for name, parameter in task.module.named_parameters():
        if "codebook" in name:
            assert parameter.grad is None and not parameter.requires_grad
        elif "conv_out" in name or "phis" in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_codes_that_nobody_uses_keep_their_place_however_long() -> None:
    task = _task(ema_decay=0.5)
    with torch.no_grad():
        _codebook(task)[:8] += 100
        task.codes.running_sums_VC = _codebook(task).detach().clone()
    before = _codebook(task)[:8].detach().clone()
    for step in range(60):  # 0.5 ** 60 is below what counts
        task.codes.add(task.module(random_batch(2, seed=step).items)[1])
        task.after_step(step)
    assert torch.allclose(_codebook(task)[:8], before, rtol=1e-4)


def test_a_reset_takes_the_running_sums_along() -> None:
    """Otherwise the next step would pull the code back to where it was idle."""
    task = _task(reset_after=2, ema_decay=0.9)
    with torch.no_grad():
        _codebook(task)[:40] += 100
        task.codes.running_sums_VC = _codebook(task).detach().clone()
    for step in range(3):
        task.loss(random_batch(seed=step))
        task.after_step(step)
    assert _codebook(task)[:40].abs().max() < 50  # the noise is a tenth of the spread, which was wide
    ratio = task.codes.running_sums_VC / task.codes.running_counts_V[:, None]
    assert torch.allclose(ratio, _codebook(task), atol=1e-5)
    moved = _codebook(task)[:40].detach().clone()
    task.loss(random_batch(seed=3))
    task.after_step(3)
    assert torch.allclose(_codebook(task)[:40], moved, atol=9)


def test_moved_codes_land_beside_used_ones_in_proportion() -> None:
    task = _task(reset_after=1)
    keeper = task.codes
    with torch.no_grad():
        _codebook(task).copy_(torch.arange(48.0)[:, None].expand(-1, 6) * 1000)
    keeper.idle_steps_V[2:] = 5
    keeper.totals["code_counts_V"][:2] = torch.tensor([3, 1])
    spread = 0.1 * _codebook(task)[:, 0].std()
    keeper.after_step(step_generator(0, 7))
    near = torch.stack([(_codebook(task)[2:].mean(dim=1) - place).abs() for place in (0.0, 1000.0)])
    assert near.amin(dim=0).max() < 6 * spread
    assert task.codes.idle_steps_V.eq(0).all() and keeper.totals["code_counts_V"].eq(0).all()


@pytest.mark.parametrize("codes", [{}, {"ema_decay": 0.9}, {"ema_decay": 0.9, "scale_dropout": 0.5}], ids=str)
def test_micro_batches_do_to_the_codes_what_one_batch_does(codes: dict[str, Any]) -> None:
    whole, parts = _task(reset_after=2, **codes), _task(reset_after=2, **codes)
    for step in range(5):
        batch = random_batch(8, seed=step)
        whole.loss(batch)
        for start in (0, 2, 4, 6):
            parts.loss(rows_of(batch, slice(start, start + 2)))
        for name, total in whole.codes.totals.items():
            assert torch.allclose(total, parts.codes.totals[name], atol=1e-4), name
        whole.after_step(step)
        parts.after_step(step)
        assert torch.allclose(_codebook(whole), _codebook(parts), atol=1e-4)
        assert torch.equal(whole.codes.idle_steps_V, parts.codes.idle_steps_V)
    assert whole.codes.idle_steps_V.max() > 0


# stopping early


def test_the_samples_own_numbers_decide_who_stops_where() -> None:
    task = _task(scale_dropout=0.25)
    uniforms = torch.zeros(5, 256)
    uniforms[:, 0] = torch.tensor([0.1, 0.3, 0.2, 0.0, 0.25])
    uniforms[:, 1] = torch.tensor([0.0, 0.0, 0.99, 0.4, 0.0])
    last = task._last_scales(uniforms)
    assert last is not None and last.tolist() == [0, 3, 2, 1, 3]
    assert _task()._last_scales(uniforms) is None


def test_stopping_changes_loss_and_what_counts_as_used() -> None:
    batch = random_batch()
    plain, stopping = _task(), _task(scale_dropout=1.0)
    assert plain.loss(batch)[0].item() != pytest.approx(stopping.loss(batch)[0].item(), rel=1e-4)
    used = [int(task.codes.totals["code_counts_V"].sum()) for task in (plain, stopping)]
    assert used[0] == 8 * 30 and used[1] == sum(
        (1, 5, 14)[int(number * 3)] for number in batch.uniforms_BR[:, 1].tolist()
    )


def test_one_scale_cannot_stop_earlier() -> None:
    with pytest.raises(ValueError, match="scale_dropout stops samples at an earlier scale"):
        _task(sizes=((4, 4),), scale_dropout=0.5)


def test_rotation_reaches_the_encoder() -> None:
    grads = []
    for gradient in ("straight_through", "rotation"):
        task = _task(gradient=gradient)
        task.loss(random_batch())[0].backward()
        grads.append(task.module.encoder.conv_in.weight.grad)
    assert not torch.allclose(grads[0], grads[1], rtol=1e-2)
