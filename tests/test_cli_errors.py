"""Bad input gets one line that names it, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from images import noise
from models_for_tests import random_generator
from nextscale.cli import main


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, pictures, and things that are wrong."""
    monkeypatch.chdir(tmp_path)
    random_generator().save("model")
    for label in ("a", "b"):
        Path("pictures", label).mkdir(parents=True)
        noise(ord(label)).save(Path("pictures", label, "one.png"))
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/half.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    Path("taken").mkdir()
    Path("taken/letter.txt").write_text("mine")
    Path("evil.pth").write_bytes(pickle.dumps(print))
    return tmp_path


TRAIN = ["train", "tokenizer", "cifar10-tiny", "--quiet"]
CASES = {
    "no such recipe": (["train", "prior", "cifar10-tini"], ["cifar10-tini", "did you mean cifar10-tiny"]),
    "no such setting": (
        [*TRAIN, "--loop.bach_size", "3"],
        ["--loop.bach_size", "did you mean --loop.batch_size"],
    ),
    "no number": ([*TRAIN, "--loop.batch_size", "many"], ["loop.batch_size", "'many'"]),
    "out of range": ([*TRAIN, "--loop.num_steps", "0"], ["loop.num_steps", "greater than or equal to 1"]),
    "no data": ([*TRAIN, "--out", "new"], ["--data.source"]),
    "no such data": ([*TRAIN, "--data.source", "nowhere", "--out", "new"], ["nowhere", "does not exist"]),
    "empty folder": ([*TRAIN, "--data.source", "empty", "--out", "new"], ["empty", "holds no images"]),
    "no tokenizer": (
        ["train", "prior", "cifar10-tiny", "--data.source", "pictures", "--out", "new"],
        ["--tokenizer_from"],
    ),
    "a folder of something else": (
        [*TRAIN, "--data.source", "pictures", "--out", "taken"],
        ["taken", "--out"],
    ),
    "no such command": (["sampel"], ["sampel"]),
    "no such option": (["sample", "model", "--lables", "3"], ["--lables", "did you mean --labels"]),
    "no such model": (["sample", "nothing", "--out", "new"], ["nothing", "model folder"]),
    "label out of range": (["sample", "model", "--labels", "10", "--out", "new"], ["10", "0 to 9"]),
    "unknown class": (
        ["sample", "model", "--labels", "frogg", "--out", "new"],
        ["'frogg'", "'frog'", "airplane"],
    ),
    "top-p 0": (["sample", "model", "--top-p", "0", "--out", "new"], ["top_p", "more than 0, at most 1"]),
    "top-p above 1": (["sample", "model", "--top-p", "1.5", "--out", "new"], ["top_p", "1.5", "at most 1"]),
    "top-k above the codes": (["sample", "model", "--top-k", "49", "--out", "new"], ["top_k", "49", "48"]),
    "temperature 0": (
        ["sample", "model", "--temperature", "0", "--out", "new"],
        ["temperature", "more than 0"],
    ),
    "negative seed": (["sample", "model", "--seed", "-1", "--out", "new"], ["-1", "whole number"]),
    "seeds missing": (["sample", "model", "--seeds", "1", "2", "--out", "new"], ["2 seeds", "10 images"]),
    "no such device": (["sample", "model", "--device", "abacus", "--out", "new"], ["abacus", "cpu"]),
    "output taken": (["sample", "model", "--out", "taken"], ["taken", "--out"]),
    "unreadable image": (
        ["reconstruct", "model", "broken", "--out", "new"],
        ["broken/half.png", "cannot be read"],
    ),
    "no such image": (["reconstruct", "model", "gone.png", "--out", "new"], ["gone.png", "does not exist"]),
    "no such checkpoint": (["convert", "--tokenizer", "gone.pth", "--out", "new"], ["gone.pth"]),
    "a checkpoint with code": (["convert", "--tokenizer", "evil.pth", "--out", "new"], ["evil.pth", "print"]),
    "scores of nothing": (["evaluate", "nothing", "--out", "new"], ["nothing", "model folder"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = CASES[case]
    before = sorted(home.rglob("*"))
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse's own complaints
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.startswith("nextscale: ") and printed.err.count("\n") == 1, printed.err
    for word in words:
        assert word in printed.err
    assert sorted(home.rglob("*")) == before


def test_a_run_that_meets_an_unreadable_image_says_which(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("pictures/a/two.png").write_bytes(b"no picture")
    assert main([*TRAIN, "--data.source", "pictures", "--out", "run", "--loop.num_steps", "1"]) == 2
    assert "pictures/a/two.png" in capsys.readouterr().err.splitlines()[-1]
