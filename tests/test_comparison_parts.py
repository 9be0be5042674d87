"""A comparison done in parts, as several processes would, ends as one that was done in one go."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from comparisons_for_tests import STUDY, toy_study, write_images
from nextscale import checkpoint
from nextscale.cli import main
from nextscale.studies import comparison, families
from nextscale.studies.comparison import run_comparison
from nextscale.studies.families import plan_families
from nextscale.studies.parts import part_names, run_parts
from nextscale.studies.settings import ComparisonStudy
from nextscale.train import loop as train_loop
from nextscale.train.logs import read_log
from nextscale.train.prior_base import PriorBase
from nextscale.train.tokenizer_task import TokenizerTask


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures; no drawings of trainings, which take longer than these."""
    monkeypatch.setattr(train_loop, "draw_curves", lambda *_: None)
    monkeypatch.setattr(PriorBase, "picture", lambda *_: None)
    monkeypatch.setattr(TokenizerTask, "picture", lambda *_: None)
    return write_images(tmp_path / "cifar")


def test_parts_are_found_by_the_study(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, folder, said = toy_study(images), tmp_path / "study", list[str]()
    parts = part_names(study)
    assert parts[:2] == ["reference", "tokenizer:next_scale"] and parts[-2:] == ["scores:diffusion", "limits"]
    for part in parts:  # each as a process of its own would
        run_parts(study, folder, [part], device="cpu", say=said.append, progress=False)
    scored = {path: path.stat().st_mtime_ns for path in folder.glob("scores/**/scores.json")}
    assert len(scored) == 3 + 5 + 3  # main figures, ways, looks

    def none(*_: object, **__: object) -> None:
        raise AssertionError("this is done")

    monkeypatch.setattr("nextscale.studies.runs.train_run", none)
    again: list[str] = []
    report = run_comparison(study, folder, device="cpu", say=again.append, progress=False)
    assert {path: path.stat().st_mtime_ns for path in scored} == scored
    assert "prior of diffusion: done" in again
    assert report["rows"][0]["name"] == "FD-CIFAR"


def test_the_best_weights_instead_of_the_last(images: Path, tmp_path: Path) -> None:
    def study(**changes: object) -> ComparisonStudy:
        families = [
            {**family, "prior": {**family["prior"], "loop": {**family["prior"]["loop"], "evaluate_every": 2}}}
            for family in tomllib.loads(STUDY)["compare"]["families"][:2]
        ]
        return toy_study(images, families=families, **changes)

    def run(given: ComparisonStudy) -> dict[str, Any]:
        return run_comparison(given, tmp_path / "study", device="cpu", say=lambda _: None, progress=False)

    with pytest.raises(ValueError, match="checkpoint best, but of 8 steps none is evaluated"):
        plan_families(toy_study(images, checkpoint="best"), tmp_path)
    last = run(study())
    with pytest.raises(ValueError, match=r"holds scores of .*'checkpoint': 'last'"):
        run(study(checkpoint="best"))
    shutil.rmtree(tmp_path / "study" / "scores")
    best = run(study(checkpoint="best"))
    steps = [
        next(row for row in report["rows"] if row["name"] == "step of the weights")["values"]
        for report in (last, best)
    ]
    for kind in ("next_scale", "next_token"):
        records = read_log(tmp_path / "study/priors" / kind / "log.jsonl")
        losses = {r["step"]: r["loss"] for r in records if r["kind"] == "evaluate"}
        final = steps[0][kind]["value"]
        on_the_way = {step: loss for step, loss in losses.items() if step != final}
        assert steps[1][kind]["value"] == min(on_the_way, key=lambda step: on_the_way[step])
        assert best["looks"][kind] != last["looks"][kind] or best["chosen"] == last["chosen"]
        assert best["scores"][kind]["scores"] != last["scores"][kind]["scores"]


def test_parts_refuse(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, folder = toy_study(images), tmp_path / "study"

    def run(*parts: str) -> None:
        run_parts(study, folder, parts, device="cpu", say=lambda _: None, progress=False)

    with pytest.raises(
        ValueError, match=r"unknown part 'prior:next_scal': .*; did you mean prior:next_scale"
    ):
        run("reference", "prior:next_scal")
    assert not folder.exists()  # nothing was begun
    with pytest.raises(ValueError, match="model"):
        run("prior:next_token")  # its tokenizer is not there
    place = folder / "parts" / "tokenizer-next_scale"
    with (
        checkpoint.held_folder(place, "in use"),
        pytest.raises(ValueError, match="another process does tokenizer:next_scale"),
    ):
        run("tokenizer:next_scale")
    with pytest.raises(ValueError, match="holds a run with looks = 2, not 3"):
        run_parts(
            toy_study(images, looks=3), folder, ["reference"], device="cpu", say=lambda _: None,
            progress=False,
        )  # fmt: skip
    (tmp_path / "toys.toml").write_text(STUDY)
    line = ["compare", str(tmp_path / "toys.toml"), "--data.source", str(images), "--only", "nothing"]
    assert main(line) == 2
    assert "unknown part 'nothing'" in capsys.readouterr().err


def test_compiling_is_no_other_study(images: Path) -> None:
    study = toy_study(images)
    first = study.families[0]
    compiled = first.model_copy(update={"prior": first.prior.model_copy(update={"compile": True})})
    other = study.model_copy(update={"families": (compiled, *study.families[1:])})
    assert families.description(other) == families.description(study)
    assert comparison.description is families.description
