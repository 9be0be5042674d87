"""Runs that are refused: folders that belong to something else, data and settings that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models_for_tests import write_pictures
from nextscale import Generator
from nextscale.tokenizer.quantizer import MultiScaleQuantizer
from nextscale.train.settings import PriorRun, TokenizerRun
from runs_for_tests import make_home, tiny_run, train_quietly


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    """The folder of a finished run."""
    train_quietly(tiny_run("prior", home), home / "prior")
    return home / "prior"


@pytest.mark.parametrize(
    ("kind", "loop", "message"),
    [
        ("prior", {"num_steps": 13}, "holds a run with loop.num_steps = 12, not 13: give the same settings"),
        ("prior", {"seed": 1}, "holds a run with loop.seed = 0, not 1"),
        ("tokenizer", {}, "holds a run with tokenizer_from = .*, not None"),
    ],
)
def test_another_run_into_the_same_folder(
    kind: str, loop: dict[str, Any], message: str, home: Path, finished: Path
) -> None:
    before = {item: item.stat().st_mtime_ns for item in finished.rglob("*")}
    with pytest.raises(ValueError, match=message):
        train_quietly(tiny_run(kind, home, **loop), finished)
    assert {item: item.stat().st_mtime_ns for item in finished.rglob("*")} == before


def test_a_folder_that_is_no_run(home: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is no run of nextscale: give another --out"):
        train_quietly(tiny_run("prior", home), tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer_from": ""}, "no tokenizer given: set --tokenizer_from"),
        ({"tokenizer_from": "nowhere"}, "no model 'nowhere'"),
        ({"sampling": {"top_k": 49}}, "top_k 49 exceeds the 48 codes of the tokenizer"),
        ({"sampling": {"num_unguided_scales": 9}}, "num_unguided_scales 9 exceeds the . scales of the"),
        ({"prior": {"depth": 1, "model_dim": 5, "num_heads": 2}}, "not divisible by num_heads"),
        ({"data": {"source": ""}}, "no data source given"),
        ({"data": {"source": "nowhere"}}, "nowhere does not exist"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, home: Path, tmp_path: Path
) -> None:
    run = PriorRun.model_validate({**tiny_run("prior", home).model_dump(), **changes})
    with pytest.raises(ValueError, match=message):
        train_quietly(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_validation_images_of_other_classes(home: Path, tmp_path: Path) -> None:
    other = write_pictures(tmp_path / "other", 4, (9, 9), num_classes=2)
    data = {"source": str(home / "pictures"), "validation": str(other)}
    run = TokenizerRun.model_validate({**tiny_run("tokenizer", home).model_dump(), "data": data})
    with pytest.raises(ValueError, match="both must have the same ones"):
        train_quietly(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_another_tokenizer(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    run = tiny_run("prior", home)
    train_quietly(run, tmp_path / "run")
    other = Generator.load(home / "given")
    with torch.no_grad():
        other.tokenizer.quantizer.codebook.weight[0] += 1
    other.save(home / "given")
    with pytest.raises(ValueError, match="holds a run with tokenizer_sha256"):
        train_quietly(run, tmp_path / "run")


@pytest.mark.parametrize(
    ("scales", "quantizer", "message"),
    [
        (3, {"num_phis": 4}, "num_phis 4 is too many: 3 scales would use 3 of them, .*; give at most 3"),
        (1, {"num_phis": 4}, "num_phis 4 is too many: 1 scales would use 1 of them, .*; give at most 1"),
        (10, {"num_phis": 9}, "num_phis 9 is too many: 10 scales would use 8 of them, .*; give at most 8"),
        (3, {"num_phis": 2, "phi_of_scale": (1, 1, 1)}, r"phi_of_scale \[1, 1, 1\] uses 1 of num_phis 2"),
    ],
    ids=str,
)
def test_phis_that_no_scale_uses(scales: int, quantizer: dict[str, Any], message: str) -> None:
    """They would get no gradient. Published models may have some: these load, and can be started from."""
    tree: dict[str, Any] = {
        "schedule": {"sizes": [[side, side] for side in range(1, scales + 1)]},
        "tokenizer": {"quantizer": quantizer},
    }
    with pytest.raises(ValueError, match=message):
        TokenizerRun.model_validate(tree)
    run = TokenizerRun.model_validate({**tree, "init": "somewhere"})
    MultiScaleQuantizer(run.tokenizer.quantizer, run.schedule)


@pytest.mark.parametrize("num_phis", [0, 1, 3])
def test_phis_that_are_all_used(num_phis: int) -> None:
    schedule = {"sizes": [[1, 1], [2, 2], [3, 3]]}
    TokenizerRun.model_validate(
        {"schedule": schedule, "tokenizer": {"quantizer": {"num_phis": num_phis, "vocab_size": 8}}}
    )
