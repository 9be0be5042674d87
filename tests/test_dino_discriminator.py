"""Heads on a frozen vision transformer: who gets gradients, what is saved, what is written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from images import MemorySource
from models_for_tests import make_loud, model_settings, random_batch, rows_of
from nextscale.checkpoint import digest, read_tensors
from nextscale.features.settings import ViTSettings
from nextscale.features.vit import VisionTransformer, load_vit
from nextscale.train.adversary_settings import DiscriminatorSettings
from nextscale.train.discriminator import DinoHeads, DinoView, SpectralConv2d
from nextscale.train.settings import TokenizerRun
from nextscale.train.tokenizer_task import TokenizerTask
from runs_for_tests import make_home, tiny_run, train_quietly
from vit_for_tests import DEPTH, SIDE, WIDTH, vit_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dino") / "dino.pth"
    torch.save(vit_weights(), path)
    return path


def _view(weights: Path) -> DinoView:
    return DinoView(load_vit(str(weights), purpose="weights of DINO"))


def _task(weights: Path, **settings: Any) -> TokenizerTask:
    model = model_settings()
    run = TokenizerRun(
        schedule=model.schedule, tokenizer=model.tokenizer, losses={"adversarial": 0.5, "reset_after": 0},
        discriminator={"dino_weights": str(weights), "start": 0.0, "warmup_share": 0.0, **settings},
    )  # fmt: skip
    task = TokenizerTask(run, source=MemorySource(6), validation=MemorySource(3), device=torch.device("cpu"))
    make_loud(task.tokenizer)
    return task


def test_four_depths_are_looked_at_and_images_of_any_size_are_resized(weights: Path) -> None:
    view = _view(weights)
    assert view.blocks == [0, 1, 3, 4] and DEPTH == 5
    images = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    seen = view(images)
    expected = view.network.after_blocks((images + 1) / 2, view.blocks)
    assert seen.shape == (2, 4, WIDTH, 3, 3)
    for index, tokens in enumerate(expected):
        for row, column in ((0, 0), (1, 2), (2, 1)):
            assert torch.equal(seen[:, index, :, row, column], tokens[:, 1 + 3 * row + column])
    large = nn.functional.interpolate(images, scale_factor=2.0, mode="nearest")
    small = nn.functional.interpolate(large, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    assert torch.equal(view(large), view(small))
    assert view(torch.rand(1, 3, 8, 24)).shape == (1, 4, WIDTH, 3, 3)


def test_the_published_size_is_looked_at_after_every_third_block() -> None:
    with torch.device("meta"):
        view = DinoView(VisionTransformer(ViTSettings()))
        assert view.blocks == [2, 5, 8, 11]
        assert view(torch.zeros(1, 3, 256, 256)).shape == (1, 4, 384, 14, 14)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_each_head_judges_its_depth_of_each_image_by_itself(weights: Path, spectral_norm: bool) -> None:
    view = _view(weights)
    heads = DinoHeads(DiscriminatorSettings(base_dim=16, spectral_norm=spectral_norm), view)
    seen = view(torch.rand(3, 3, SIDE, SIDE) * 2 - 1)
    logits = heads(seen)
    assert logits.shape == (3, 4 * 3, 3) and logits.dtype == torch.float32
    assert torch.allclose(heads(seen[1:2]), logits[1:2], atol=1e-6)
    changed = seen.clone()
    changed[:, 2] += torch.randn_like(changed[:, 2])
    differs = (heads(changed) - logits).abs().amax(dim=(0, 2)).view(4, 3).amax(dim=1) > 1e-3
    assert differs.tolist() == [False, False, True, False]
    assert any(isinstance(module, SpectralConv2d) for module in heads.modules()) is spectral_norm


def test_heads_learn_the_image_gets_its_gradient_and_the_network_stays(weights: Path) -> None:
    task, batch = _task(weights, consistency=1.0), random_batch(4)
    adversary = task.adversary
    assert adversary is not None and isinstance(adversary.view, DinoView)
    network = adversary.view.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    names = set(dict(task.module.named_parameters()))
    assert not any("blocks" in name and "discriminator" in name for name in names)
    assert sum(item.numel() for item in adversary.discriminator.parameters()) < 40_000 + 4 * 32 * WIDTH
    adversary.adaptive_weight.fill_(1.0)
    task.loss(batch)[0].backward()
    for name, parameter in task.module.named_parameters():
        assert parameter.grad is not None, name
        # originals and reconstructions inside the hinge pull the last bias in opposite directions
        assert name.endswith("judge.bias") or parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_adversarial_gradient_reaches_the_decoder_through_the_network(weights: Path) -> None:
    """Its gradient at the image, against a difference of the mean judgement in float64."""
    view = _view(weights)
    view.network.double()
    heads = DinoHeads(DiscriminatorSettings(base_dim=8), view).double()
    images = (torch.rand(1, 3, 20, 16, dtype=torch.float64) * 2 - 1).requires_grad_()

    def judged(given: Tensor) -> Tensor:
        hidden = view(given).unbind(dim=1)
        return torch.cat([head(item) for head, item in zip(heads.heads, hidden, strict=True)]).mean()

    (gradient,) = torch.autograd.grad(judged(images), images)
    direction, step = torch.randn_like(images), 1e-6
    difference = (judged(images + step * direction) - judged(images - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference.detach()), rel=1e-4)
    assert (gradient != 0).double().mean() > 0.9


def test_micro_batches_add_up(weights: Path) -> None:
    gradients = []
    for parts in ([slice(0, 4)], [slice(0, 2), slice(2, 4)]):
        torch.manual_seed(0)
        task = _task(weights)
        for rows in parts:
            (task.loss(rows_of(random_batch(4), rows))[0] / len(parts)).backward()
        assert task.adversary is not None
        named = task.adversary.discriminator.named_parameters()
        gradients.append({name: item.grad for name, item in named})
    for name, value in gradients[0].items():
        assert torch.allclose(value, gradients[1][name], atol=1e-6), name


def test_a_run_records_the_digest_and_saves_the_heads_alone(weights: Path, tmp_path: Path) -> None:
    run = tiny_run("adversarial", make_home(tmp_path), num_steps=6)
    assert isinstance(run, TokenizerRun)
    settings = {**run.discriminator.model_dump(), "num_levels": 3, "dino_weights": str(weights)}
    run = TokenizerRun.model_validate({**run.model_dump(), "discriminator": settings})
    train_quietly(run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["dino_weights_sha256"] == digest(weights)
    saved = read_tensors(tmp_path / "run" / "checkpoints" / "step-00000006" / "module.safetensors")
    judging = {name for name in saved if name.startswith("discriminator.")}
    assert judging and all(name.startswith("discriminator.heads.") for name in judging)
    assert train_quietly(run, tmp_path / "run")[1][-1] == "going on after step 6 of 6"
    other = tmp_path / "other.pth"
    torch.save({**vit_weights(), "norm.bias": torch.zeros(WIDTH)}, other)
    weights.rename(weights.with_suffix(".old"))
    other.rename(weights)
    with pytest.raises(ValueError, match="holds a run with dino_weights_sha256"):
        train_quietly(run, tmp_path / "run")
    weights.with_suffix(".old").rename(weights)


@pytest.mark.parametrize(
    ("adversarial", "settings", "message"),
    [
        (0.0, {}, "dino_weights would have no effect with losses.adversarial 0"),
        (0.5, {"num_levels": 2}, "num_levels 2 would have no effect, since dino_weights replaces"),
        (0.5, {"dino_weights": "nowhere.pth"}, "weights of DINO: nowhere.pth is not a file"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(
    adversarial: float, settings: dict[str, Any], message: str, weights: Path
) -> None:
    model = model_settings()
    with pytest.raises(ValueError, match=message):
        run = TokenizerRun(
            schedule=model.schedule, tokenizer=model.tokenizer, losses={"adversarial": adversarial},
            discriminator={"dino_weights": str(weights), **settings},
        )  # fmt: skip
        TokenizerTask(run, source=MemorySource(6), validation=MemorySource(3), device=torch.device("cpu"))
