"""Scores: code usage against loops, likelihoods against the definition, agreement of classes."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
import torch.nn.functional as F

from features_for_tests import distance_of_rows
from images import MemorySource
from models_for_tests import VOCAB, divided_classifier, model_settings, random_generator
from nextscale.data.loader import evaluation_batches
from nextscale.evaluate.agreement import class_agreement
from nextscale.evaluate.prediction import mean_per_scale, prediction_scores, token_scores
from nextscale.evaluate.reconstruction import CodeUsage, reconstruction_scores
from nextscale.evaluate.similarity import psnr, ssim
from nextscale.features.extractor import load_extractor
from nextscale.pixels import to_model, to_uint8
from nextscale.scales import ScaleSchedule


def test_usage_counts_each_scale_against_what_it_could_use() -> None:
    """One cell and five images can show five codes at most, however large the codebook."""
    schedule = ScaleSchedule.square([1, 2, 3])
    usage = CodeUsage(schedule, 20)
    tokens = torch.zeros(5, 14, dtype=torch.int64)
    tokens[:, 0] = torch.tensor([4, 5, 6, 7, 4])  # four of at most five
    tokens[:, 1:5] = torch.arange(20).view(5, 4)  # all twenty of twenty
    tokens[:, 5:] = torch.tensor([1, 1, 1, 1, 1, 2, 2, 2, 2])  # two of twenty (45 tokens)
    for batch in tokens.split(2):
        usage.add(batch)
    assert usage.used() == [4, 20, 2]
    assert usage.shares() == pytest.approx([4 / 5, 1.0, 0.1])
    assert CodeUsage(schedule, 20).shares() == [0, 0, 0]


def test_reconstruction_is_the_mean_over_images_whatever_the_batch() -> None:
    tokenizer, source = random_generator().tokenizer, MemorySource(7)
    images = numpy.concatenate(
        [pixels for pixels, _ in evaluation_batches(source, size=(8, 8), batch_size=3)]
    )
    tokens = tokenizer.encode(to_model(images))
    expected = psnr(images, to_uint8(tokenizer.decode(tokens))).mean()
    for batch_size in (2, 7):
        scores = reconstruction_scores(tokenizer, source, batch_size=batch_size)
        assert scores["psnr"] == pytest.approx(expected)
        assert scores["codes_used_0"] == len(tokens[:, 0].unique())
        assert scores["usage_0"] == pytest.approx(len(tokens[:, 0].unique()) / 7)
        assert scores["codes_used_3"] == len(tokens[:, 14:].unique())
    few = reconstruction_scores(tokenizer, source, limit=2)
    assert few["psnr"] == pytest.approx(psnr(images, to_uint8(tokenizer.decode(tokens)))[[0, 6]].mean())


def test_reconstruction_seen_by_a_network_and_by_windows() -> None:
    """Images of 32 pixels a side: SSIM, and the distance of reconstructions from originals."""
    side = 16
    settings = model_settings(sizes=((1, 1), (side, side)))
    tokenizer, source = random_generator(settings).tokenizer, MemorySource(9)
    images, _ = next(evaluation_batches(source, size=(32, 32), batch_size=9))
    decoded = to_uint8(tokenizer.decode(tokenizer.encode(to_model(images))))
    extractor = load_extractor("cifar")
    features = [extractor(given)["pool"].double() for given in (images, decoded)]
    scores = reconstruction_scores(tokenizer, source, batch_size=4, extractor=extractor)
    assert scores["ssim"] == pytest.approx(ssim(images, decoded).mean(), rel=1e-10)
    assert scores["rFD-CIFAR"] == pytest.approx(distance_of_rows(*features), rel=1e-4)
    assert scores["rFD-CIFAR"] > 1
    assert "rFD-CIFAR" not in reconstruction_scores(tokenizer, source)
    assert "ssim" not in reconstruction_scores(random_generator().tokenizer, source)  # 8 pixels a side
    with pytest.raises(ValueError, match="at least 2 samples, given 1"):
        reconstruction_scores(tokenizer, source, limit=1, extractor=extractor)


def test_token_scores_against_the_definition() -> None:
    logits, tokens = torch.randn(3, 4, 5), torch.randint(5, (3, 4))
    losses, correct = token_scores(logits, tokens)
    assert losses.shape == correct.shape == (4,)
    for place in range(4):
        chances = logits[:, place].softmax(dim=-1)
        expected = sum(-math.log(chances[row, tokens[row, place]]) for row in range(3)) / 3
        assert losses[place].item() == pytest.approx(expected, rel=1e-5)
        hits = (logits[:, place].argmax(dim=-1) == tokens[:, place]).float().mean()
        assert correct[place] == hits


def test_means_per_scale() -> None:
    schedule = ScaleSchedule(sizes=((1, 1), (1, 2)))
    assert mean_per_scale(torch.tensor([3.0, 1.0, 2.0]), schedule).tolist() == [3.0, 1.5]


def test_prediction_is_the_mean_over_tokens_whatever_the_batch() -> None:
    generator, source = random_generator(), MemorySource(7)
    batches = evaluation_batches(source, size=(8, 8), batch_size=7)
    pixels, labels = next(batches)
    tokens = generator.tokenizer.encode(to_model(pixels))
    logits = generator.prior(torch.from_numpy(labels), generator.tokenizer.teacher_inputs(tokens))
    expected = F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).item()
    last = F.cross_entropy(logits[:, 14:].flatten(0, 1), tokens[:, 14:].flatten()).item()
    for batch_size in (2, 7):
        scores = prediction_scores(generator.tokenizer, generator.prior, source, batch_size=batch_size)
        assert scores["loss"] == pytest.approx(expected, rel=1e-5)
        assert scores["scale_loss_3"] == pytest.approx(last, rel=1e-5)
        assert scores["accuracy"] == pytest.approx((logits.argmax(-1) == tokens).float().mean().item())
        assert sum(name.startswith("scale_accuracy") for name in scores) == 4


def test_a_prior_that_knows_nothing_has_the_loss_of_a_guess() -> None:
    generator = random_generator()
    torch.nn.init.zeros_(generator.prior.head.weight)
    torch.nn.init.zeros_(generator.prior.head.bias)
    scores = prediction_scores(generator.tokenizer, generator.prior, MemorySource(3))
    assert scores["loss"] == pytest.approx(math.log(VOCAB), rel=1e-6)


def test_scores_of_a_schedule_that_is_not_square() -> None:
    generator = random_generator(model_settings(sizes=((1, 2), (3, 5))))
    scores = prediction_scores(generator.tokenizer, generator.prior, MemorySource(3))
    assert scores["loss"] == pytest.approx((2 * scores["scale_loss_0"] + 15 * scores["scale_loss_1"]) / 17)
    assert reconstruction_scores(generator.tokenizer, MemorySource(3))["psnr"] > 0


def test_class_agreement_whatever_the_batch() -> None:
    images = numpy.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=numpy.uint8)
    classifier = divided_classifier(to_model(images))
    guesses = classifier.assign(to_model(images)).tolist()
    assert len(set(guesses)) > 1
    labels = [guess if index % 4 else (guess + 1) % 3 for index, guess in enumerate(guesses)]
    for batch_size in (3, 100):
        agreed = class_agreement(images, labels, classifier, batch_size=batch_size)
        assert agreed.tolist() == [bool(index % 4) for index in range(20)]
