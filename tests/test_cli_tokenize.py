"""``nextscale tokenize``: what it keeps and prints, and going on after a stop."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from images import encoded, noise
from models_for_tests import random_generator, write_pictures
from nextscale import Generator
from nextscale.checkpoint import digest
from nextscale.cli import main
from nextscale.data import tokenizing
from nextscale.data.loader import evaluation_batches, training_batches
from nextscale.data.settings import DataSettings
from nextscale.data.sources import hold_out, open_source
from nextscale.data.token_cache import open_cache
from nextscale.pixels import to_model
from nextscale.tokenizer.model import Tokenizer
from nextscale.train.settings import LoopSettings


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    random_generator().save("model")
    write_pictures(tmp_path / "pictures", 9, (10, 9), num_classes=2)
    return tmp_path


def _run(options: str) -> int:
    return main(shlex.split(f"tokenize pictures --model model --out tokens {options}"))


def test_views_of_a_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--views 2 --flip --enlarge 1.5 --seed 3 --batch 4 --workers 1 --device cpu") == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("9 images of 2 classes, 2 views, 30 tokens each, 0.0 MiB: tokens\n", "")
    cache, tokenizer = open_cache(here / "tokens"), Generator.load("model").tokenizer
    made_from = cache.made_from
    assert (made_from.source, made_from.held_out, made_from.seed) == ("pictures", None, 3)
    assert made_from.tokenizer_sha256 == digest(here / "model" / "tokenizer.safetensors")
    settings = DataSettings(flip=True, enlarge=1.5)
    batches = training_batches(
        open_source("pictures"), settings, size=(8, 8), batch_size=9, seed=3, steps=range(2)
    )
    for view, batch in enumerate(batches):
        tokens = tokenizer.encode(batch.items).numpy()
        assert numpy.array_equal(cache.tokens_VNL[view, batch.samples_B.numpy()], tokens)


def test_what_is_not_given(here: Path) -> None:
    """Defaults are those of the settings of data and loop, which the help repeats."""
    assert _run("--views 2") == 0
    made_from, data = open_cache(here / "tokens").made_from, DataSettings()
    assert (made_from.enlarge, made_from.flip) == (data.enlarge, data.flip)
    assert made_from.seed == LoopSettings().seed == 0


def test_center_crops_of_what_is_not_held_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--views 1 --enlarge 1 --validation-share 0.3") == 0
    rest, held = hold_out(open_source("pictures"), 0.3)
    assert capsys.readouterr().out.startswith(f"{9 - len(held.labels)} images") and len(held.labels) == 3
    cache = open_cache(here / "tokens")
    assert cache.made_from.held_out == 0.3 and cache.made_from.seed is None
    pixels, labels = next(evaluation_batches(rest, size=(8, 8), batch_size=9))
    tokens = Generator.load("model").tokenizer.encode(to_model(pixels))
    assert numpy.array_equal(cache.tokens_VNL[0], tokens.numpy()) and cache.labels.tolist() == labels.tolist()


def test_stopped_and_called_again(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tokenizing, "CHUNK", 2)
    encode, seen = Tokenizer.encode, 0

    def stop(self: Tokenizer, images: torch.Tensor, **given: Any) -> torch.Tensor:
        nonlocal seen
        seen += len(images)
        if seen == 10:
            raise KeyboardInterrupt
        return encode(self, images, **given)

    monkeypatch.setattr(Tokenizer, "encode", stop)
    assert _run("--views 2 --batch 2") == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    assert _run("--views 2 --batch 2") == 0 and seen == 18 + 2
    assert _run("--views 2 --batch 2") == 0 and seen == 18 + 2
    assert _run("--views 3") == 2
    assert "tokens holds a token cache with views = 2, not 3" in capsys.readouterr().err


def test_two_at_once_into_one_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode, answers = Tokenizer.encode, []

    def meanwhile(self: Tokenizer, images: torch.Tensor, **given: Any) -> torch.Tensor:
        if not answers:  # a lock is that of its open file, so this is as good as another process
            answers.append(_run("--views 2"))
        return encode(self, images, **given)

    monkeypatch.setattr(Tokenizer, "encode", meanwhile)
    assert _run("--views 2") == 0 and answers == [2]
    assert capsys.readouterr().err == (
        "nextscale: another process makes tokens in tokens: wait for it, stop it, or give another folder\n"
    )
    assert len(open_cache(here / "tokens").labels) == 9


def test_a_refused_folder_stays_as_it_is(here: Path) -> None:
    (here / "tokens").mkdir()
    (here / "tokens" / "notes.txt").write_text("mine")
    assert _run("--views 2") == 2
    assert [item.name for item in (here / "tokens").iterdir()] == ["notes.txt"]


def test_an_unreadable_image_is_named_and_can_be_mended(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = here / "pictures" / "class 01" / "broken.png"
    broken.write_bytes(encoded(noise(1))[:50])
    assert _run("--views 2") == 2
    assert "image pictures/class 01/broken.png cannot be read" in capsys.readouterr().err
    broken.write_bytes(encoded(noise(1)))
    assert _run("--views 2") == 0 and len(open_cache(here / "tokens").labels) == 10
