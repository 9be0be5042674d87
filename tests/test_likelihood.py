"""Bits of tokens against the cross-entropy, and a model that classifies what it draws."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import scipy.stats
import torch

from images import MemorySource
from models_for_tests import CLASSES, VOCAB, model_settings, picture, random_generator, tokens_of
from nextscale import Generator
from nextscale.cli import main
from nextscale.evaluate.likelihood import (
    class_bits,
    image_bits,
    label_bits,
    likelihood_scores,
    wilson_interval,
)
from nextscale.evaluate.prediction import prediction_scores


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator()


@pytest.mark.parametrize("classify", [False, True])
def test_bits_are_the_cross_entropy_whatever_the_batch(generator: Generator, classify: bool) -> None:
    source = MemorySource(7)
    expected = prediction_scores(generator.tokenizer, generator.prior, source)
    for batch_size in (2, 7):
        scores = likelihood_scores(
            generator.tokenizer, generator.prior, source, batch_size=batch_size, classify=classify
        )
        assert (scores["num_images"], scores["num_tokens"]) == (7, 30)
        assert scores["bits_per_token"] * math.log(2) == pytest.approx(expected["loss"], rel=1e-5)
        for scale, bits in enumerate(scores["bits_per_scale"]):
            nats = bits * math.log(2) / (scale + 1) ** 2
            assert nats == pytest.approx(expected[f"scale_loss_{scale}"], rel=1e-5)
        assert scores["bits_per_image"] == pytest.approx(sum(scores["bits_per_scale"]))
        assert scores["bits_per_pixel_value"] == pytest.approx(scores["bits_per_image"] / (3 * 8 * 8))
        assert ("classification" in scores) == classify
    low, high = scores["bits_per_image_interval_95"]
    assert low < scores["bits_per_image"] < high
    few = likelihood_scores(generator.tokenizer, generator.prior, source, limit=1)
    assert few["num_images"] == 1 and few["bits_per_image_interval_95"] is None


def test_a_prior_that_knows_nothing_needs_the_bits_of_a_guess() -> None:
    generator = random_generator()
    torch.nn.init.zeros_(generator.prior.head.weight)
    torch.nn.init.zeros_(generator.prior.head.bias)
    scores = likelihood_scores(generator.tokenizer, generator.prior, MemorySource(3), classify=True)
    assert scores["bits_per_token"] == pytest.approx(math.log2(VOCAB), rel=1e-6)
    assert scores["bits_per_scale"] == pytest.approx([n * math.log2(VOCAB) for n in (1, 4, 9, 16)], rel=1e-6)


def test_bits_of_whole_images(generator: Generator) -> None:
    tokens, labels = torch.randint(VOCAB, (3, 30)), torch.tensor([1, 10, 4])
    losses = torch.nn.functional.cross_entropy(
        generator.prior(labels, generator.tokenizer.teacher_inputs(tokens)).mT, tokens, reduction="none"
    )
    bits = image_bits(generator.tokenizer, generator.prior, labels, tokens)
    assert torch.allclose(bits, losses.double().sum(dim=1) / math.log(2), rtol=1e-5)
    other = random_generator(model_settings(prior={"kind": "diffusion"}))
    with pytest.raises(ValueError, match="a diffusion prior gives no likelihood"):
        image_bits(other.tokenizer, other.prior, labels, tokens)


def test_all_classes_against_one_at_a_time(generator: Generator) -> None:
    tokens = torch.randint(VOCAB, (5, 30))
    inputs = generator.tokenizer.teacher_inputs(tokens)
    slow = [label_bits(generator.prior, torch.full((5,), label), tokens, inputs) for label in range(10)]
    for batch_size in (3, 50):
        bits = class_bits(generator.prior, tokens, inputs, batch_size=batch_size)
        assert bits.shape == (5, 10, 4)
        assert torch.allclose(bits, torch.stack(slow, dim=1), rtol=1e-5)


def test_a_model_recognises_its_own_samples(generator: Generator) -> None:
    labels = list(range(10)) * 4
    tokens = tokens_of(generator(labels, seeds=range(40)))
    inputs = generator.tokenizer.teacher_inputs(tokens)
    bits = class_bits(generator.prior, tokens, inputs, batch_size=100)
    right = bits.sum(dim=2).argmin(dim=1) == torch.tensor(labels)
    assert right.float().mean() > 0.95
    assert (bits[:, :, 0].argmin(dim=1) == torch.tensor(labels)).float().mean() < 0.9  # one token says less


def test_accuracy_counts_the_scales_up_to_each(generator: Generator) -> None:
    source = MemorySource(30)
    found = likelihood_scores(generator.tokenizer, generator.prior, source, classify=True)["classification"]
    assert found["chance"] == 0.1 and found["accuracy_up_to_scale"][-1] == found["accuracy"]
    assert len(found["accuracy_up_to_scale"]) == 4
    low, high = found["accuracy_interval_95"]
    assert 0 <= low <= found["accuracy"] <= high <= 1


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (61, 200)])
def test_the_interval_against_scipy(right: int, count: int) -> None:
    expected = scipy.stats.binomtest(right, count).proportion_ci(method="wilson")
    assert wilson_interval(right, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


# the command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    random_generator(model_settings(levels=4)).save(tmp_path / "model")
    for index, name in enumerate(CLASSES):
        (tmp_path / "data" / name).mkdir(parents=True)
        picture(index, (32, 32)).save(tmp_path / "data" / name / "one.png")
    (tmp_path / "others" / "a").mkdir(parents=True)
    picture(0, (32, 32)).save(tmp_path / "others" / "a" / "one.png")
    return tmp_path


def test_the_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["likelihood", "model", "--data", "data", "--limit", "7", "--classify", "--batch", "9"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["model"], printed["data"], printed["num_images"]) == ("model", "data", 7)
    assert set(printed["classification"]) == {
        "accuracy", "accuracy_interval_95", "chance", "accuracy_up_to_scale",
    }  # fmt: skip
    assert main(["likelihood", "model", "--data", "data", "--limit", "7"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["bits_per_image"] == pytest.approx(printed["bits_per_image"], rel=1e-6)
    assert "classification" not in plain


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--data", "others"], "others has other classes than the model: a"),
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--data", "data", "--batch", "0"], "--batch 0 and --limit None must be at least 1"),
        (["--data", "data", "--limit", "0"], "must be at least 1"),
    ],
    ids=str,
)
def test_what_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    assert main(["likelihood", "model", *given]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
