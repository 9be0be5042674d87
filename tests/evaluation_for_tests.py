"""A model of ten classes and 32 pixels, pictures of its classes, and what a command line gives back."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy
import pytest

from models_for_tests import CLASSES, model_settings, picture, random_generator
from nextscale.cli import main
from nextscale.generate.generator import Generator

#: Shorter than what a user would wait for.
QUICK = "--resamples 5"


def make_evaluation_home(folder: Path) -> Path:
    """``model``, ``half`` (the same without a prior), ``train`` and ``test`` (pictures in class folders),
    ``train.npz`` (statistics).
    """
    generator = random_generator(model_settings(levels=4, sampling={"guidance": 1.0, "top_k": 20}))
    generator.save(folder / "model")
    Generator(generator.settings.model_copy(update={"prior": None}), generator.tokenizer).save(
        folder / "half"
    )
    for name, count, first in (("train", 30, 0), ("test", 20, 100)):
        for index in range(count):
            home = folder / name / CLASSES[index % 10]
            home.mkdir(parents=True, exist_ok=True)
            picture(first + index, (32, 32)).save(home / f"{index:03d}.png")
    assert (
        main(["statistics", str(folder / "train"), "--kind", "training", "--out", str(folder / "train.npz")])
        == 0
    )
    return folder


def evaluate(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The result that a command line prints, and what it warns of."""
    assert main(["evaluate", *shlex.split(line)]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def save_npz(path: Path, count: int, *, seed: int = 0, labels: bool = False) -> numpy.ndarray:
    """A file of random pictures of 32 pixels a side."""
    images = numpy.stack([numpy.asarray(picture(seed + index, (32, 32))) for index in range(count)])
    numpy.savez(path, images, **({"arr_1": numpy.arange(count) % 10} if labels else {}))
    return images
