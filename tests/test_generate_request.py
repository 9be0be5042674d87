"""What callers may ask for, and what they are told when they ask for something else."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from models_for_tests import CLASSES, model_settings, random_generator
from nextscale import Generator
from nextscale.generate.request import resolve_label


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator()


def test_labels() -> None:
    assert [resolve_label(label, CLASSES) for label in (0, 9, "9", "frog", None)] == [0, 9, 9, 6, 10]
    assert resolve_label("7", ("7", "b", "c")) == 0  # a name goes before digits


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (10, r"label 10 is out of range: this model knows 0 to 9 \(airplane, .*, truck\)"),
        (-1, "label -1 is out of range: this model knows 0 to 9"),
        ("10", "label 10 is out of range"),
        ("frogg", "unknown class 'frogg': this model knows airplane, .*, truck; did you mean 'frog'?"),
        ("-1", "unknown class '-1': this model knows airplane"),
        ("", "unknown class ''"),
        (1.5, "label 1.5 is neither the number of a class nor its name nor None"),
        (True, "label True is neither"),
        ("²", "unknown class '²'"),
    ],
)
def test_labels_that_no_class_has(label: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_label(label, CLASSES)


def test_a_thousand_names_are_not_all_listed() -> None:
    with pytest.raises(ValueError, match=r"n0, n1, .*, n11 and 988 more") as caught:
        resolve_label(1000, [f"n{number}" for number in range(1000)])
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": -0.1}, "guidance -0.1 is out of range: expected 0 or more, finite"),
        ({"guidance": float("nan")}, "guidance nan is out of range"),
        ({"guidance": float("inf")}, "guidance inf is out of range"),
        ({"guidance": [1.0, 2.0, 3.0]}, "3 values of guidance for 2 images"),
        ({"top_k": -1}, "top_k -1 is out of range: expected 0 or more, at most 48"),
        ({"top_k": 49}, "top_k 49 is out of range: expected 0 or more, at most 48"),
        ({"top_k": [0, 1.5]}, "must be whole numbers; 0 is off, 1 is greedy"),
        ({"top_p": 0}, "top_p 0 is out of range: expected more than 0, at most 1"),
        ({"top_p": 1.5}, "top_p 1.5 is out of range: expected more than 0, at most 1"),
        ({"temperature": 0}, "temperature 0 is out of range: expected more than 0"),
        (
            {"temperature": [1.0, float("inf")]},
            "temperature inf is out of range: expected more than 0, finite",
        ),
        ({"num_unguided_scales": 5}, "num_unguided_scales 5 is out of range: expected 0 or more, at most 4"),
        ({"num_unguided_scales": [0, 0.5]}, "must be whole numbers; 0 is none"),
        ({"ssg": -1.0}, "ssg -1.0 is out of range: expected 0 or more, finite"),
        ({"tok_k": 5}, "unknown sampling setting 'tok_k': expected guidance, .*; did you mean top_k?"),
        ({"seeds": [1]}, "2 labels and 1 seeds: give one of each per image"),
        ({"labels": [], "seeds": []}, "at least one"),
        ({"seeds": [0, -1]}, "seed -1 must be a whole number from 0"),
        ({"seeds": [0, 0.5]}, "seed 0.5 must be a whole number"),
        ({"labels": "frog", "seeds": [0] * 4}, "labels and seeds are lists"),
        ({"labels": [1, 10]}, "label 10 is out of range"),
    ],
    ids=str,
)
def test_values_out_of_range(generator: Generator, settings: dict[str, Any], message: str) -> None:
    call = {"labels": [1, 2], "seeds": [3, 4], **settings}
    for method in (generator, generator.stream):
        with pytest.raises(ValueError, match=message):
            method(**call)


def test_values_at_the_ends_of_their_ranges(generator: Generator) -> None:
    result = generator([0, 9], seeds=[0, 2**63 - 1], guidance=0, top_k=48, top_p=1, temperature=1e-3)
    assert result.images_BCHW.isfinite().all()
    assert generator([0], seeds=[0], top_p=1e-300).images_BCHW.isfinite().all()


def test_numbers_of_numpy_and_torch_are_numbers(generator: Generator) -> None:
    plain = generator([1, 2], seeds=[3, 4], guidance=1.5, top_k=[5, 6], top_p=0.9)
    other = generator(
        numpy.array([1, 2]), seeds=numpy.array([3, 4]), guidance=numpy.float32(1.5),
        top_k=numpy.array([5, 6]), top_p=numpy.float64(0.9),
    )  # fmt: skip
    assert torch.equal(plain.images_BCHW, other.images_BCHW)
    assert torch.equal(
        generator([1], seeds=[3], top_k=numpy.int64(5)).images_BCHW,
        generator([1], seeds=[3], top_k=5).images_BCHW,
    )


def test_a_model_without_a_prior_says_what_is_missing(generator: Generator) -> None:
    settings = model_settings().model_copy(update={"prior": None})
    with pytest.raises(ValueError, match="holds a tokenizer but no prior: train one with nextscale train"):
        Generator(settings, generator.tokenizer)([1], seeds=[0])
