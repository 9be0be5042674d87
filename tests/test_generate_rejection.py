"""Rejection sampling: which candidates are drawn, which one stays, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from models_for_tests import CLASSES, model_settings, random_generator, tokens_of
from nextscale import Generator
from nextscale.cli import main
from nextscale.evaluate.likelihood import EditLikelihood, image_bits
from nextscale.features.classifier import load_classifier
from nextscale.generate.rejection import draw_edits, keep_best, num_candidates
from nextscale.rng import candidate_seed


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator()


def _brightness(images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
    """Class 0 likes bright images, the others like dark ones."""
    return images_BCHW.mean(dim=(1, 2, 3)) * torch.where(labels_B == 0, 1, -1)


def test_the_best_candidate_stays_whatever_the_batch(generator: Generator) -> None:
    labels, seeds = [0, "frog", 0], [5, 5, 6]
    settings: dict[str, Any] = {"guidance": [0.0, 1.0, 2.0], "temperature": 1.3}
    expected = []
    for row, (label, seed) in enumerate(zip(labels, seeds, strict=True)):
        own = [candidate_seed(seed, number) for number in range(4)]
        images = generator([label] * 4, seeds=own, guidance=settings["guidance"][row], temperature=1.3)
        scores = _brightness(images.images_BCHW, torch.tensor([0 if label == 0 else 6] * 4))
        expected.append((own[int(scores.argmax())], float(scores.max()), tokens_of(images)[scores.argmax()]))
    assert any(seed not in (5, 6) for seed, _, _ in expected)
    for batch_size in (1, 5, 50):
        kept = keep_best(
            generator, labels, seeds=seeds, candidates=4, score=_brightness, batch_size=batch_size, **settings
        )
        assert kept.seeds == tuple(seed for seed, _, _ in expected)
        assert kept.scores == pytest.approx([score for _, score, _ in expected], abs=1e-5)
        assert torch.equal(tokens_of(kept.result), torch.stack([tokens for _, _, tokens in expected]))
        assert (kept.num_drawn, kept.acceptance_rate) == (12, 0.25)
        again = generator(labels, seeds=kept.seeds, **settings)
        assert torch.equal(tokens_of(again), tokens_of(kept.result))


def test_one_candidate_is_plain_sampling_and_of_equals_the_first_stays(generator: Generator) -> None:
    plain = generator([1, 2], seeds=[3, 4])
    one = keep_best(generator, [1, 2], seeds=[3, 4], candidates=1, score=_brightness)
    assert torch.equal(one.result.images_BCHW, plain.images_BCHW) and one.acceptance_rate == 1
    equal = keep_best(generator, [1, 2], seeds=[3, 4], candidates=3, score=lambda _, labels: labels * 0.0)
    assert equal.seeds == (3, 4)


def test_more_candidates_score_higher(generator: Generator) -> None:
    labels, seeds = list(range(10)), range(10)
    one, four = (
        keep_best(generator, labels, seeds=seeds, candidates=count, score=_brightness) for count in (1, 4)
    )
    gains = [after - before for before, after in zip(one.scores, four.scores, strict=True)]
    assert sum(gain > 0 for gain in gains) >= 5 and min(gains) >= 0
    drawn: list[int] = []
    keep_best(
        generator, [1, 2], seeds=[3, 4], candidates=3, score=_brightness, batch_size=4, on_drawn=drawn.append
    )
    assert drawn == [4, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [1, None]}, "label None has no class that a classifier could look for"),
        ({"labels": [1, 10]}, "label 10 is out of range"),
        ({"guidance": [1.0]}, "1 values of guidance for 2 images"),
        ({"candidates": 0}, "candidates 0 and batch_size 50 must be at least 1"),
        ({"score": lambda images, _: images.mean(dim=(1, 2, 3)) / 0}, "no finite number"),
    ],
)
def test_what_is_refused(generator: Generator, change: dict[str, Any], message: str) -> None:
    call = {"labels": [1, 2], "seeds": [3, 4], "candidates": 2, "score": _brightness, **change}
    with pytest.raises(ValueError, match=message):
        keep_best(generator, **call)


def test_shares() -> None:
    assert [num_candidates(share) for share in (1, 0.5, 0.25, 0.33, 0.1, 0.02)] == [1, 2, 4, 3, 10, 50]
    for share, message in (
        (0, "out of range"),
        (1.5, "out of range"),
        (0.4, r"for example 0.5 \(the best of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            num_candidates(share)


# from the command line


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rejection") / "model"
    random_generator(model_settings(levels=4)).save(folder)
    return folder


def test_sampling_what_the_classifier_is_surest_of(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kept"
    how = ["--labels", "1", "ship", "--seed", "7", "--npz", "--temperature", "0.9", "--dtype", "float32"]
    assert main(["sample", str(model), *how, "--keep-best", "0.25", "--batch", "3", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"2 images of 8 drawn: {out / 'grid.png'}\n"
    record = json.loads((out / "settings.json").read_text())
    rejection = record["rejection"]
    assert (rejection["drawn"], rejection["acceptance_rate"], rejection["keep_best"]) == (8, 0.25, 0.25)
    assert rejection["seeds_of_the_request"] == [7, 8] and record["labels"] == ["automobile", "ship"]
    with numpy.load(out / "samples.npz") as arrays:
        images = arrays["arr_0"]
    generator, classifier = Generator.load(model), load_classifier()
    for row, (label, seed) in enumerate(((1, 7), (8, 8))):
        own = [candidate_seed(seed, number) for number in range(4)]
        tried = generator([label] * 4, seeds=own, temperature=0.9)
        scores = classifier.confidence(tried.images_BCHW, torch.tensor([label] * 4))
        best = int(scores.argmax())
        assert record["seeds"][row] == own[best] and numpy.array_equal(images[row], tried.images[best])
        assert rejection["log_probabilities"][row] == pytest.approx(float(scores[best]), abs=1e-4)


def test_confidence_is_the_probability_of_the_label() -> None:
    classifier = load_classifier()
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    chances = ((classifier(images) + classifier(images.flip(dims=(3,)))) / 2).softmax(dim=1)
    labels = torch.tensor([0, 5, 9])
    sure = classifier.confidence(images, labels)
    assert torch.allclose(sure.exp(), chances[torch.arange(3), labels], rtol=1e-5)
    assert torch.allclose(sure, classifier.confidence(images.flip(dims=(3,)), labels), atol=1e-5)


def test_models_that_the_classifier_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_generator().save(tmp_path / "small")
    settings = model_settings(levels=4).model_copy(update={"class_names": CLASSES[::-1]})
    random_generator(settings).save(tmp_path / "others")
    for model, given, message in (
        ("small", ["--keep-best", "0.5"], "looks at 32 x 32 pixels, this model makes 8 x 8"),
        ("others", ["--keep-best", "0.5"], "this model has other classes"),
        ("small", ["--keep-best", "0.4"], "must be one of a whole number"),
        ("small", ["--keep-best", "0.5", "--smooth"], "leave out --smooth"),
    ):
        assert main(["sample", str(tmp_path / model), *given, "--out", str(tmp_path / "never")]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1 and not (tmp_path / "never").exists()


def test_candidates_of_an_edit_are_those_of_their_seeds_and_the_likeliest_is_named(
    generator: Generator,
) -> None:
    image = generator(["frog"], seeds=[0]).images_BCHW
    mask = torch.ones(generator.tokenizer.image_size)
    mask[:4] = 0
    likelihood = EditLikelihood(generator.tokenizer, generator.prior)
    drawn = draw_edits(
        generator, image, label="frog", seed=7, candidates=5, score=likelihood, batch_size=2, mask=mask
    )
    assert drawn.seeds == tuple(candidate_seed(7, number) for number in range(5)) and drawn.seeds[0] == 7
    again = generator.edit(image, labels=["frog"] * 5, seeds=drawn.seeds, mask=mask)
    assert numpy.array_equal(drawn.images, again.images)
    bits = image_bits(generator.tokenizer, generator.prior, torch.full((5,), 6), tokens_of(again))
    assert drawn.scores == pytest.approx([-value for value in bits.tolist()], rel=1e-5)
    assert drawn.best == int(bits.argmin()) and len(set(drawn.scores)) == 5
    unjudged = draw_edits(generator, image, label="frog", seed=7, candidates=2, mask=mask)
    assert unjudged.scores == () and unjudged.best == 0
    with pytest.raises(ValueError, match="candidates 0 and batch_size 16 must be at least 1"):
        draw_edits(generator, image, label="frog", seed=7, candidates=0, mask=mask)
