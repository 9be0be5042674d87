"""What the trainings of next-token and diffusion priors do with a batch, measure, keep and refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from images import MemorySource
from models_for_tests import CODE_DIM, make_loud, model_settings, random_generator
from nextscale import Generator
from nextscale.cli import main
from nextscale.config import build
from nextscale.convert import to_released
from nextscale.data.loader import Batch, evaluation_batches
from nextscale.evaluate.denoising import denoising_scores, validation_key, validation_times
from nextscale.evaluate.prediction import prediction_scores
from nextscale.generate.settings import ModelSettings, SamplingSettings
from nextscale.pixels import to_model
from nextscale.prior.noise import add_noise
from nextscale.train.diffusion_task import DiffusionTask, lesson
from nextscale.train.prior_task import PriorTask
from nextscale.train.settings import PriorRun
from runs_for_tests import make_home, tiny_run, train_quietly

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("families"))


def _task(kind: str, home: Path, **prior: Any) -> Any:
    tree = tiny_run(kind, home, batch_size=5).model_dump()
    tree["prior"] |= {"drop_path": 0.0, **prior}
    run, family = PriorRun.model_validate(tree), DiffusionTask if kind == "diffusion" else PriorTask
    task = family(run, source=MemorySource(7), validation=MemorySource(3), device=CPU, folder=home)
    task.prepare(progress=False)
    make_loud(task.module)
    return task


# next-token


def test_the_next_token_loss_is_the_cross_entropy_of_all_tokens(home: Path) -> None:
    task = _task("next_token", home, class_dropout=0.0)
    batch = next(iter(task.batches(range(1))))
    loss, numbers = task.loss(batch)
    tokens = task.tokenizer.encode(batch.items)
    logits = task.module(batch.labels_B, tokens)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert numbers["accuracy"].item() == pytest.approx((logits.argmax(-1) == tokens).float().mean().item())


def test_next_token_scores_are_those_of_its_tokens(home: Path) -> None:
    task = _task("next_token", home)
    source = MemorySource(5)
    scores = prediction_scores(task.tokenizer, task.module, source, batch_size=2)
    pixels, labels = next(evaluation_batches(source, size=(8, 8), batch_size=5))
    tokens = task.tokenizer.encode(to_model(pixels))
    with torch.no_grad():
        logits = task.module(torch.from_numpy(labels), tokens)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    assert scores["loss"] == pytest.approx(expected.item(), rel=1e-5)


# diffusion


def test_the_diffusion_loss_is_the_error_of_the_guessed_noise(home: Path) -> None:
    task = _task("diffusion", home, class_dropout=0.4)
    batch = next(iter(task.batches(range(1))))
    times, noise = lesson(batch, (16, CODE_DIM))
    clean = task.module.standardise(task.tokenizer.features(batch.items))
    dropped = batch.uniforms_BR[:, 0] < 0.4
    assert dropped.any() and not dropped.all()
    labels = torch.where(dropped, 3, batch.labels_B)
    guess = task.module(labels, add_noise(clean, noise, times), times)
    assert task.loss(batch)[0].item() == pytest.approx((guess - noise).square().mean().item(), rel=1e-4)


def test_a_lesson_is_standard_normal_noise_at_times_of_every_size() -> None:
    def batch(seed: int) -> Batch:
        uniforms = torch.rand(600, 256, generator=torch.Generator().manual_seed(seed))
        return Batch(torch.zeros(600, 0), torch.zeros(600), uniforms, torch.arange(600))

    times, noise = lesson(batch(0), (4, 3))
    assert 0 <= times.min() < 20 and 980 < times.max() < 1000
    assert times.double().mean() == pytest.approx(500, abs=35)
    assert noise.mean() == pytest.approx(0, abs=0.04) and noise.std() == pytest.approx(1, abs=0.03)
    assert len(noise[:, 0, 0].unique()) == 600
    again, other = lesson(batch(0), (4, 3)), lesson(batch(1), (4, 3))
    assert torch.equal(again[0], times) and torch.equal(again[1], noise)
    assert not torch.equal(other[0], times) and not torch.isclose(other[1], noise).any(dim=2).all()
    rows = batch(0)
    part = Batch(rows.items[5:9], rows.labels_B[5:9], rows.uniforms_BR[5:9], rows.samples_B[5:9])
    assert torch.equal(lesson(part, (4, 3))[1], noise[5:9])


def test_features_are_measured_before_the_first_step_and_kept_with_the_model(home: Path) -> None:
    task = _task("diffusion", home)
    pixels, _ = next(evaluation_batches(MemorySource(7), size=(8, 8), batch_size=7))
    features = task.tokenizer.features(to_model(pixels)).transpose(0, 1).flatten(1)
    assert torch.allclose(task.module.mean_C, features.mean(dim=1), atol=1e-5)
    assert torch.allclose(task.module.deviation_C, features.std(dim=1, correction=0), rtol=1e-4)
    train_quietly(tiny_run("diffusion", home), home / "trained")
    generator = Generator.load(home / "trained" / "model")
    assert generator.prior.mean_C.abs().min() > 0 and (generator.prior.deviation_C != 1).all()
    assert generator.settings.prior == tiny_run("diffusion", home).prior


def test_diffusion_scores_are_the_same_lessons_every_time(home: Path) -> None:
    task, source = _task("diffusion", home), MemorySource(9)
    scores = denoising_scores(task.tokenizer, task.module, source)
    again = prediction_scores(task.tokenizer, task.module, source, batch_size=4)
    assert scores == pytest.approx(again, rel=1e-5)
    quarters = [scores[f"quarter_loss_{quarter}"] for quarter in range(4)]
    assert scores["loss"] == pytest.approx(numpy.mean(quarters)) and len(set(quarters)) == 4
    make_loud(task.module)
    assert denoising_scores(task.tokenizer, task.module, source)["loss"] != pytest.approx(scores["loss"])
    images = numpy.random.default_rng(0).integers(0, 256, (900, 2, 2, 3), dtype=numpy.uint8)
    keys = [validation_key(image) for image in images]
    assert len(set(keys)) == 900 and min(keys) >= 2**48  # beyond those of training
    all_times = numpy.stack([validation_times(key) for key in keys])
    assert (all_times // 250 == [0, 1, 2, 3]).all() and len(numpy.unique(all_times)) > 900
    part = denoising_scores(task.tokenizer, task.module, source, limit=1)
    assert part["loss"] != pytest.approx(scores["loss"], rel=1e-3)


# what is refused


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "next_token",
            {"tokenizer_from": "given"},
            "a next_token prior reads a tokenizer of one scale, given 4",
        ),
        ("next_token", {"scale_weights": [1.0]}, r"scale_weights \[1.0\] would have no effect"),
        ("next_token", {"sampling": {"num_steps": 5}}, "num_steps would have no effect: .*next_token"),
        ("prior", {"sampling": {"sampler": "ddpm"}}, "sampler would have no effect: .*kind next_scale"),
        (
            "diffusion",
            {"cache_views": 1},
            "cache_views 1 would have no effect: the prior is of kind diffusion",
        ),
        ("diffusion", {"tokens_from": "x"}, "tokens_from x would have no effect"),
        ("diffusion", {"scale_weights": [1.0]}, "scale_weights .* would have no effect"),
        ("diffusion", {"sampling": {"top_k": 5}}, "top_k would have no effect: .*kind diffusion"),
        ("diffusion", {"prior": {"vocab": 5}}, "run: unknown key prior.vocab"),
        ("diffusion", {"prior": {"depth": 0}}, "run: prior.depth is 0: .*greater than or equal to 1"),
        (
            "diffusion",
            {"init": "cifar10-tiny"},
            "init cifar10-tiny holds a prior of kind next_scale, this run",
        ),
    ],
    ids=str,
)
def test_settings_that_a_family_does_not_know(
    kind: str, changes: dict[str, Any], message: str, home: Path, tmp_path: Path
) -> None:
    tree = tiny_run(kind, home).model_dump(mode="json")
    for name, value in changes.items():
        tree[name] = tree[name] | value if isinstance(value, dict) else value
    if tree["tokenizer_from"] == "given":
        tree["tokenizer_from"] = str(home / "given")
    with pytest.raises(ValueError, match=message) as caught:
        train_quietly(build(PriorRun, tree, source="run"), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_configs_of_models(home: Path) -> None:
    tree = model_settings().model_dump(mode="json")
    del tree["prior"]["kind"]  # a config that names no family is that of a next-scale prior
    assert ModelSettings.model_validate(tree) == model_settings()
    tree["prior"]["kind"], tree["sampling"]["top_p"] = "diffusion", 0.5
    with pytest.raises(ValueError, match="top_p would have no effect: the prior is of kind diffusion"):
        ModelSettings.model_validate(tree)
    assert set(SamplingSettings().known_to("diffusion")) == {"guidance", "sampler", "num_steps"}
    assert {"top_k", "guidance"} < set(SamplingSettings().known_to("next_scale"))


@pytest.mark.parametrize("kind", ["next_token", "diffusion"])
def test_other_families_cannot_be_published(kind: str) -> None:
    settings = model_settings(sizes=[(4, 4)], prior={"kind": kind})
    with pytest.raises(ValueError, match=f"knows next_scale priors only, this one is of kind {kind}"):
        to_released(random_generator(settings))


# what carries on


@pytest.mark.parametrize("kind", ["next_token", "diffusion"])
def test_starting_from_a_model_of_the_same_family(kind: str, home: Path, tmp_path: Path) -> None:
    first = tiny_run(kind, home, num_steps=2)
    train_quietly(first, tmp_path / "first")
    still = first.optimizer.model_copy(update={"base_lr": 1e-12, "weight_decay": 0.0})
    changes = {"init": str(tmp_path / "first" / "model"), "optimizer": still, "data": first.data}
    _, said = train_quietly(first.model_copy(update=changes), tmp_path / "second")
    assert any("0 left, 0 new" in line for line in said)
    one, other = (Generator.load(tmp_path / name / "model") for name in ("first", "second"))
    for (name, value), theirs in zip(
        one.prior.state_dict().items(), other.prior.state_dict().values(), strict=True
    ):
        assert torch.allclose(value, theirs, atol=1e-6), name


@pytest.mark.parametrize("kind", ["next_token", "diffusion"])
def test_the_commands(kind: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_quietly(tiny_run(kind, home, num_steps=1), tmp_path / "run")
    model, out = str(tmp_path / "run" / "model"), str(tmp_path / "out")
    own = ["--num-steps", "3"] if kind == "diffusion" else ["--top-k", "7"]
    assert main(["sample", model, "--per-label", "2", "--png", "--out", out, *own]) == 0
    assert len(list((tmp_path / "out" / "images").iterdir())) == 6
    assert main(["sample", model, "--out", str(tmp_path / "refused"), "--smooth"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["evaluate", model, "--num-samples", "0", "--data", str(home / "pictures")]) == 0
    assert '"prediction"' in capsys.readouterr().out
