"""``nextscale evaluate`` on two processes scores as on one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from evaluation_for_tests import evaluate, make_evaluation_home
from ranks_for_tests import finish, start

pytestmark = pytest.mark.slow


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_evaluation_home(tmp_path)


def test_two_processes_score_as_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part of 256 samples and one of 44; 30 images of the reference are less than one batch."""
    line = "model --num-samples 300 --resamples 5 --reference train --reference-kind training"
    capsys.readouterr()
    alone, _ = evaluate(f"{line} --out one", capsys)
    command = [
        "-m",
        "nextscale.cli",
        "evaluate",
        *line.split(),
        "--batch",
        "64",
        "--out",
        "two",
        "--device",
        "cpu",
    ]
    (code, out, err), (other_code, other_out, _) = finish(start(command))
    assert (code, other_code, other_out) == (0, 0, ""), err
    together = json.loads(out)
    assert together["scores"].keys() == alone["scores"].keys()
    for name, score in alone["scores"].items():
        assert together["scores"][name]["value"] == pytest.approx(score["value"], rel=1e-4), name
    assert together["class_agreement"] == pytest.approx(alone["class_agreement"], abs=2 / 300)
    names = [sorted(item.name for item in (here / out).iterdir()) for out in ("one", "two")]
    assert names[0] == names[1] == [".lock", "images.png", "reference.npz", "run.json", "scores.json"]
    assert (here / "one" / "images.png").read_bytes() == (here / "two" / "images.png").read_bytes()


def test_what_one_process_meets_ends_both(here: Path) -> None:
    shutil.copytree(here / "test", here / "damaged")
    file = sorted((here / "damaged").rglob("*.png"))[5]
    file.write_bytes(file.read_bytes()[:60])
    line = "evaluate damaged --reference train.npz --device cpu"
    results = finish(start(["-m", "nextscale.cli", *line.split()]))
    assert [code for code, _, _ in results] == [2, 2]
    assert "cannot be read" in results[0][2] and results[1][2] == ""
