"""The adversarial half of the tokenizer's training: who pulls at whom, how strongly, and from when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from images import MemorySource
from models_for_tests import make_loud, model_settings, random_batch, rows_of
from nextscale.train.adversary import Adversary, hinge_loss
from nextscale.train.adversary_settings import DiscriminatorSettings
from nextscale.train.augment import augment
from nextscale.train.discriminator import SpectralConv2d
from nextscale.train.optimizer import build_optimizer, clip_gradients, set_rates
from nextscale.train.settings import OptimizerSettings, TokenizerRun
from nextscale.train.tokenizer_task import TokenizerTask

CPU = torch.device("cpu")
PLAIN = {"augment": {"colour": 0, "shift": 0, "cut_out": 0}}


def _task(
    *, weight: float = 0.5, codes: dict[str, Any] | None = None, loud: bool = True, **settings: Any
) -> TokenizerTask:
    torch.manual_seed(0)
    model = model_settings()
    run = TokenizerRun(
        schedule=model.schedule, tokenizer=model.tokenizer, codes=codes or {},
        losses={"adversarial": weight, "reset_after": 0}, loop={"num_steps": 100},
        discriminator={"num_levels": 2, "start": 0.0, "warmup_share": 0.0, **settings},
    )  # fmt: skip
    task = TokenizerTask(run, source=MemorySource(6), validation=MemorySource(3), device=CPU)
    if loud:
        make_loud(task.tokenizer)
    return task


def _adversary(task: TokenizerTask) -> Adversary:
    assert task.adversary is not None
    return task.adversary


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: item.grad.clone() for name, item in module.named_parameters() if item.grad is not None}


def test_without_weight_there_is_no_discriminator() -> None:
    task = _task(weight=0.0)
    assert task.adversary is None and task.module is task.tokenizer and not task.parameter_groups
    assert set(task.totals) == {"code_counts_V"} and set(task.state()) == {"idle_steps_V"}


def test_the_tokenizer_starts_from_the_same_weights_with_and_without() -> None:
    with_one, without = (_task(weight=weight, loud=False).tokenizer.state_dict() for weight in (0.5, 0.0))
    assert all(torch.equal(value, without[name]) for name, value in with_one.items())


def test_one_backward_pass_gives_each_side_its_own_gradient() -> None:
    """Against two passes: the tokenizer's loss with a frozen discriminator, the hinge on fixed images."""
    task, batch = _task(**PLAIN), random_batch()
    adversary, discriminator = _adversary(task), _adversary(task).discriminator
    adversary.adaptive_weight.fill_(3.0)
    task.loss(batch)[0].backward()
    found = _gradients(task.module)
    task.module.zero_grad(set_to_none=True)

    decoded, quantized = task.tokenizer(batch.items)
    error = decoded - batch.items
    discriminator.requires_grad_(False)
    (
        0.2 * error.abs().mean() + error.square().mean() + quantized.codebook_loss
        + 0.25 * quantized.commitment_loss - 0.5 * 3.0 * discriminator(decoded).mean()
    ).backward()  # fmt: skip
    discriminator.requires_grad_(True)
    hinge_loss(discriminator(batch.items), discriminator(decoded.detach())).backward()
    expected = _gradients(task.module)
    assert found.keys() == expected.keys() == dict(task.module.named_parameters()).keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-5, rtol=1e-4), name


# the adaptive weight


def test_the_weight_is_the_ratio_of_gradients_of_the_step_before() -> None:
    task, batch = _task(**PLAIN), random_batch()
    adversary, last = _adversary(task), task.tokenizer.decoder.conv_out.weight
    _, numbers = task.loss(batch)
    assert numbers["adversarial_weight"] == 0  # nothing was measured yet
    decoded, _ = task.tokenizer(batch.items)
    error = decoded - batch.items
    one = torch.autograd.grad(0.2 * error.abs().mean() + error.square().mean(), last, retain_graph=True)[0]
    other = torch.autograd.grad(adversary.discriminator(decoded).mean(), last)[0]
    task.after_step(0)
    assert adversary.adaptive_weight.item() == pytest.approx((one.norm() / other.norm()).item(), rel=1e-4)
    assert all(total.eq(0).all() for total in task.totals.values())
    _, numbers = task.loss(batch)
    assert numbers["adversarial_weight"].item() == pytest.approx(0.5 * adversary.adaptive_weight.item())


@pytest.mark.parametrize(
    ("limits", "expected"), [({"max_weight": 0.02}, 0.02), ({"min_weight": 5e3}, 5e3)], ids=["most", "least"]
)
def test_the_weight_keeps_to_its_limits(limits: dict[str, float], expected: float) -> None:
    task = _task(**limits)
    task.loss(random_batch())
    task.after_step(0)
    assert _adversary(task).adaptive_weight.item() == pytest.approx(expected)


def test_a_gradient_that_is_no_number_leaves_the_weight() -> None:
    task = _task()
    _adversary(task).adaptive_weight.fill_(2.0)
    task.loss(random_batch())
    task.totals["adversarial_gradient"].fill_(float("nan"))
    task.after_step(0)
    assert _adversary(task).adaptive_weight.item() == 2.0


@pytest.mark.parametrize(
    "codes", [{}, {"ema_decay": 0.9, "gradient": "rotation", "scale_dropout": 0.5}], ids=str
)
def test_micro_batches_give_the_gradient_of_one_batch(codes: dict[str, Any]) -> None:
    whole, parts = (_task(spectral_norm=True, consistency=2.0, codes=codes) for _ in range(2))
    for step in range(3):
        batch = random_batch(8, seed=step)
        for task in (whole, parts):
            task.module.zero_grad(set_to_none=True)
        whole.loss(batch)[0].backward()
        for start in (0, 2, 4, 6):
            (parts.loss(rows_of(batch, slice(start, start + 2)))[0] / 4).backward()
        mine, theirs = _gradients(parts.module), _gradients(whole.module)
        for name, value in theirs.items():
            assert torch.allclose(mine[name], value, atol=1e-4, rtol=1e-3), name
        for task in (whole, parts):
            task.after_step(step)
        weights = [_adversary(task).adaptive_weight.item() for task in (whole, parts)]
        assert weights[0] == pytest.approx(weights[1], rel=1e-3)
        accuracies = [_adversary(task).accuracy_2 for task in (whole, parts)]
        assert torch.allclose(*accuracies, atol=1e-5)


# from when


def test_it_begins_after_its_share_and_grows_over_the_warm_up() -> None:
    task = _task(start=0.25, warmup_share=0.04)
    adversary, batch = _adversary(task), random_batch(2)
    assert [adversary.share(step) for step in (0, 24, 25, 26, 27, 28, 29, 99)] == [
        0,
        0,
        0.25,
        0.5,
        0.75,
        1,
        1,
        1,
    ]
    adversary.adaptive_weight.fill_(2.0)
    for step, trains in ((23, False), (24, True), (25, True)):  # what after_step was told last
        adversary.next_step.fill_(step + 1)
        task.module.zero_grad(set_to_none=True)
        loss, numbers = task.loss(batch)
        loss.backward()
        assert numbers["adversarial_weight"].item() == pytest.approx(0.5 * 2.0 * adversary.share(step + 1))
        names = [name for name in _gradients(task.module) if name.startswith("discriminator")]
        assert bool(names) is trains
    set_before = set(task.loss(batch)[1])
    adversary.next_step.fill_(0)
    assert set(task.loss(batch)[1]) == set_before  # means over a log's interval need the same names


def test_the_step_survives_in_the_state() -> None:
    task, other = _task(start=0.5), _task(start=0.5)
    task.loss(random_batch(2))
    task.after_step(70)
    other.load_state({name: value.clone() for name, value in task.state().items()})
    assert int(_adversary(other).next_step) == 71
    assert other.loss(random_batch(2))[1]["discriminator_loss"] > 0


# disturbances


def _loss_of_discriminator(task: TokenizerTask) -> float:
    return float(task.loss(random_batch())[1]["discriminator_loss"].detach())


@pytest.mark.parametrize("name", ["colour", "shift", "cut_out"])
def test_each_disturbance_acts_by_the_samples_own_numbers(name: str) -> None:
    settings = DiscriminatorSettings(augment={**PLAIN["augment"], name: 0.5}).augment
    images, uniforms = torch.rand(6, 3, 8, 8) * 2 - 1, torch.rand(6, 7)
    disturbed = augment(images, uniforms, settings)
    assert not torch.allclose(disturbed, images, atol=0.05) and disturbed.shape == images.shape
    assert torch.equal(augment(images[2:4], uniforms[2:4], settings), disturbed[2:4])
    assert not torch.equal(augment(images, uniforms.flip(0), settings), disturbed)
    images.requires_grad_()
    augment(images, uniforms, settings).square().sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert _loss_of_discriminator(_task(augment={**PLAIN["augment"], name: 0.5})) != pytest.approx(
        _loss_of_discriminator(_task(**PLAIN)), abs=1e-6
    )


def test_consistency_adds_to_the_discriminators_loss_alone() -> None:
    plain, consistent = _task(), _task(consistency=4.0)
    assert _loss_of_discriminator(consistent) > _loss_of_discriminator(plain)
    gradients = []
    for task in (plain, consistent):
        task.loss(random_batch())[0].backward()
        gradients.append(_gradients(task.tokenizer))
    assert all(torch.allclose(value, gradients[1][name], atol=1e-6) for name, value in gradients[0].items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"consistency": 1.0, **PLAIN}, "consistency compares images before and after"),
        ({"min_weight": 2.0, "max_weight": 1.0}, "min_weight 2.0 exceeds max_weight 1.0"),
        ({"num_levels": 4}, "num_levels 4 leaves nothing of 8 x 8 pixels: give at most 3"),
        ({"base_dim": 20}, "multiple of 8"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _task(**settings)


def test_spectral_norms_are_measured_once_a_step_and_hold() -> None:
    task = _task(spectral_norm=True)
    discriminator, batch = _adversary(task).discriminator, random_batch(2)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    for _ in range(3):
        task.module.train()
        task.loss(batch)
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
    task.after_step(0)
    once = discriminator.state_dict()["head.left"].clone(), discriminator.head.weight.flatten(1)
    expected = nn.functional.normalize(once[1].T @ before["head.left"], dim=0)
    assert torch.allclose(discriminator.state_dict()["head.right"], expected, atol=1e-6)
    for step in range(1, 40):
        task.after_step(step)
    for module in discriminator.modules():
        if isinstance(module, SpectralConv2d):
            largest = torch.linalg.svdvals(module.weight.flatten(1))[0]
            estimate = module.left @ module.weight.flatten(1) @ module.right
            assert estimate.item() == pytest.approx(largest.item(), rel=0.02)
    assert _loss_of_discriminator(task) != pytest.approx(_loss_of_discriminator(_task()), rel=1e-3)


# rates and clipping


def test_the_discriminator_has_its_own_rate_averages_and_clipping() -> None:
    task = _task(lr_factor=0.5, betas=(0.3, 0.7), clip_norm=0.01)
    settings = OptimizerSettings(betas=(0.9, 0.95))
    optimizer = build_optimizer(task.module, settings, no_decay=task.no_decay, groups=task.parameter_groups)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held)) and set(held) == {id(item) for item in task.module.parameters()}
    mine = {id(item) for item in _adversary(task).discriminator.parameters()}
    set_rates(optimizer, lr=2.0, weight_decay=0.25)
    for group in optimizer.param_groups:
        inside = {id(item) in mine for item in group["params"]}
        assert len(inside) == 1
        expected = (1.0, (0.3, 0.7)) if inside == {True} else (2.0, (0.9, 0.95))
        assert (group["lr"], tuple(group["betas"])) == expected
        assert group["weight_decay"] == (0.25 if group["decayed"] else 0)
    task.loss(random_batch())[0].backward()
    norms = clip_gradients(task.module, 0.5, task.parameter_groups)
    assert norms["discriminator_gradient_norm"] > 0.01
    for module, limit in ((_adversary(task).discriminator, 0.01), (task.tokenizer, 0.5)):
        norm = torch.stack([value.norm() for value in _gradients(module).values()]).norm()
        assert norm.item() <= limit * 1.001


def test_training_the_discriminator_alone_makes_it_right() -> None:
    """Originals have colours at random, reconstructions come from a fixed tokenizer."""
    task = _task(**PLAIN)
    discriminator = _adversary(task).discriminator
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=2e-3)
    losses = []
    for step in range(25):
        loss, numbers = task.loss(random_batch(8, seed=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_step(step)
        losses.append(float(numbers["discriminator_loss"].detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert _adversary(task).accuracy_2.min() > 0.5
