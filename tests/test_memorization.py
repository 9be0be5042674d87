"""Nearest training neighbours: against all pairs at once, and what counts as memorised."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from images import noise
from models_for_tests import model_settings, picture, random_generator
from nextscale.cli import main
from nextscale.evaluate import precision_recall
from nextscale.evaluate.memorization import memorization, nearest_neighbours


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("same", [False, True])
def test_neighbours_against_all_pairs(rows: int, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_recall, "_PAIRS_AT_A_TIME", 23 * rows)
    others = torch.randn(23, 5)
    queries = others if same else torch.randn(11, 5)
    distances, indices = nearest_neighbours(queries, others, count=4, same=same)
    pairs = (queries[:, None].double() - others[None]).square().sum(dim=2).sqrt()
    if same:
        pairs.fill_diagonal_(torch.inf)
    expected, order = pairs.sort(dim=1)
    assert torch.allclose(distances, expected[:, :4], atol=1e-7) and torch.equal(indices, order[:, :4])


def test_equal_features_are_found_far_from_the_origin() -> None:
    others = torch.randn(50, 256) + 100
    distances, indices = nearest_neighbours(others.flip(0), others)
    assert distances.max() < 1e-5 and indices.flatten().tolist() == list(range(50))[::-1]
    _, other = nearest_neighbours(others, others, same=True)
    assert (other.flatten() != torch.arange(50)).all()


@pytest.mark.parametrize(("count", "same"), [(0, False), (4, False), (3, True)])
def test_too_few_images(count: int, same: bool) -> None:
    with pytest.raises(ValueError, match="neighbours asked for among"):
        nearest_neighbours(torch.randn(3, 2), torch.randn(3, 2), count=count, same=same)


def test_fresh_images_lie_within_a_quantile_as_often_as_it_says() -> None:
    numbers = torch.Generator().manual_seed(0)
    training, fresh = torch.randn(2000, 3, generator=numbers), torch.randn(2000, 3, generator=numbers)
    found = memorization(fresh, training)
    assert found.share_within(0.5) == pytest.approx(0.5, abs=0.04)
    assert found.share_within(0.05) == pytest.approx(0.05, abs=0.02)
    assert found.scores()["share_of_copies"] == 0


def test_copies_stand_out_and_other_things_do_not() -> None:
    training = torch.randn(300, 8)
    training[1] = training[0]  # a training image that is there twice
    rounding = 1 + 1e-7 * torch.randn(300, 8)
    copies = memorization((training * rounding)[:100], training, num_neighbours=3)
    scores = copies.scores()
    assert [
        scores[f"share_{name}"] for name in ("of_copies", "within_5_percent", "with_ratio_below_half")
    ] == [1] * 3
    assert scores["smallest_ratio"] == scores["median_ratio"] == 0
    assert copies.indices_NK[2:, 0].tolist() == list(range(2, 100)) and copies.indices_NK.shape == (100, 3)
    far = memorization(torch.randn(100, 8) * 10, training).scores()
    assert far["share_within_median"] < 0.05 and far["smallest_ratio"] > 0.5


def test_ratios_against_the_definition() -> None:
    training = torch.tensor([[0.0], [1.0], [4.0]])  # t: 1, 1, 3
    found = memorization(torch.tensor([[0.25], [3.0], [10.0]]), training)
    assert found.training_M.tolist() == pytest.approx([1, 1, 3])
    assert found.ratios_N.tolist() == pytest.approx([0.25, 1 / 3, 2])
    assert (found.share_within(0.5), found.share_within(1)) == pytest.approx((2 / 3, 2 / 3))
    assert found.scores()["share_with_ratio_below_half"] == pytest.approx(2 / 3)


# the command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Training pictures, copies of some, noise, and other pictures."""
    monkeypatch.chdir(tmp_path)
    for name, images in {
        "training": [picture(seed, (32, 32)) for seed in range(40)],
        "copies": [picture(seed, (32, 32)) for seed in range(6)],
        "noise": [noise(seed, (32, 32)) for seed in range(6)],
    }.items():
        (tmp_path / name).mkdir()
        for index, image in enumerate(images):
            image.save(tmp_path / name / f"{index:02d}.png")
    return tmp_path


def test_copies_are_found_and_noise_is_not(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = ["--training", "training", "--neighbours", "3", "--shown", "4"]
    assert main(["neighbours", "copies", *how, "--out", "one"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["num_samples"], printed["num_training"], printed["share_of_copies"]) == (6, 40, 1)
    record = json.loads((here / "one" / "scores.json").read_text())
    each = record.pop("samples_nearest_first")
    assert record == printed
    assert {(item["sample"], Path(item["nearest"]).name) for item in each} == {
        (i, f"{i:02d}.png") for i in range(6)
    }
    with Image.open(here / "one" / "neighbours.png") as image:
        pixels = numpy.asarray(image)
    assert pixels.shape == (4 * 66 + 2, 5 * 66 + 2, 3)
    assert numpy.array_equal(pixels[2:66, 2:66], pixels[2:66, 134:198])  # the sample, a gap, its neighbour
    assert main(["neighbours", "noise", *how, "--out", "two"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["share_of_copies"] == other["share_within_median"] == 0 and other["smallest_ratio"] > 1


def test_samples_of_a_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_generator(model_settings(levels=4)).save(here / "model")
    how = [
        "--training",
        "training",
        "--limit",
        "20",
        "--num-samples",
        "7",
        "--seed",
        "3",
        "--temperature",
        "0.5",
    ]
    assert main(["neighbours", "model", *how]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["num_samples"], printed["num_training"], printed["first_seed"]) == (7, 20, 3)
    assert printed["sampling"]["temperature"] == 0.5 and printed["model"] == "model"
    assert printed["share_of_copies"] == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["copies", "--seed", "1"], "copies holds images, not a model: leave out --seed"),
        (["copies", "--ssg", "1"], "copies holds images, not a model"),
        (["copies", "--features", "vgg"], "no extractor 'vgg'"),
        (["copies", "--size", "16"], "FD-CIFAR is defined on images of 32 x 32 pixels, given 16 x 16"),
        (["copies", "--neighbours", "0"], "--neighbours 0 must be at least 1"),
        (["copies", "--neighbours", "41"], "41 neighbours asked for among 40 other images: give 1 to 40"),
        (["copies", "--num-samples", "0"], "--num-samples 0 must be at least 1"),
        (["copies", "--limit", "1"], "--limit 1 must be at least 2"),
        (["cifar10-tiny", "--size", "32"], "--size 32 is for images"),
    ],
    ids=str,
)
def test_what_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    assert main(["neighbours", *given, "--training", "training"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (here / "neighbours").exists()
