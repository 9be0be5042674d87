"""Processes that hold slices train what whole models train: gradients, weights, scores, checkpoints, runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sharded_ranks_for_tests as jobs
from nextscale.checkpoint import read_tensors
from nextscale.train.logs import read_log
from nextscale.train.slices import SavedTensors
from ranks_for_tests import ALONE, during_loss, launch, train_to
from runs_for_tests import STEPS, largest_and_share, largest_difference, make_home, train_quietly

pytestmark = pytest.mark.slow
Found = dict[str, Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and a tokenizer."""
    return make_home(tmp_path_factory.mktemp("sharded"))


@pytest.fixture(scope="module")
def compared(home: Path) -> Path:
    """What one process, two with whole models and two with slices have measured."""
    out = home / "compared"
    launch("compare", home, out, script=jobs.__file__)
    (out / "one").mkdir()
    jobs.measure(home, out / "one", ALONE, sharded=False)
    return out


@pytest.mark.parametrize(
    ("name", "of_one", "of_two"),
    [
        ("prior", 1e-5, 1e-6),
        ("shared", 1e-5, 1e-6),  # one modulation layer for all blocks
        ("adversarial", 1e-5, 1e-6),
        ("recompute", 1e-5, 1e-6),
        ("recompute-tokenizer", 1e-5, 1e-6),
        ("clipped", 1e-5, 1e-6),
        ("bfloat16", 1e-2, 1e-6),  # micro-batches of other sizes round otherwise, slices do not
        ("double-prior", 1e-9, 1e-9),
        ("double-shared", 1e-9, 1e-9),
    ],
)
def test_slices_compute_what_whole_models_compute(
    name: str, of_one: float, of_two: float, compared: Path
) -> None:
    """Gradients and norms of a step of two micro-batches; float64: weights, averages, moments after three."""
    one, whole, slices = (
        read_tensors(compared / kind / f"{name}.safetensors") for kind in ("one", "replicated", "full")
    )
    if name in ("adversarial", "recompute-tokenizer"):
        # originals and reconstructions pull at it alike: 0 up to rounding
        assert all(abs(float(given.pop("discriminator.head.bias"))) < 1e-6 for given in (one, whole, slices))
    if name == "clipped":
        assert float(slices["gradient_norm"]) > 0.1, "the limit"
        squares = sum(
            value.double().square().sum() for key, value in slices.items() if key != "gradient_norm"
        )
        assert float(squares) ** 0.5 == pytest.approx(0.1, rel=1e-4)
    differences = largest_difference(one, slices), largest_difference(whole, slices)
    print(f"{name}: slices differ from one process by {differences[0]:.2g}, from two by {differences[1]:.2g}")
    assert differences[0] < of_one and differences[1] < of_two


def test_computing_again_changes_no_bit(compared: Path) -> None:
    plain, again = (read_tensors(compared / "full" / f"{n}.safetensors") for n in ("prior", "recompute"))
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_each_process_holds_its_slices_only(compared: Path) -> None:
    first, second = (json.loads((compared / f"sizes-{rank}.json").read_text()) for rank in (0, 1))
    assert first["all"] == second["all"]
    whole = first["held"] + second["held"] - first["all"]  # what both hold
    assert 0 < whole < 0.3 * first["all"]


def test_a_part_without_finite_numbers_changes_nothing_anywhere(compared: Path) -> None:
    for rank in (0, 1):
        spoiled = json.loads((compared / f"spoiled-{rank}.json").read_text())
        assert not spoiled["finite"] and spoiled["unchanged"] and spoiled["own"] == (rank == 0)
        assert spoiled["failure"].startswith("loss nan, not finite: 3")


def test_shared_scores_are_those_of_one_process(home: Path, compared: Path) -> None:
    """Seven images, five and one, two at a time, on two processes; and images that only one can read."""
    first, second = (json.loads((compared / f"scores-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    one = jobs.scores(home, ALONE, sharded=False)
    assert first.pop("none readable").startswith("none of 2 images can be read: image 1 and")
    assert one.pop("none readable").startswith("none of 4 images can be read: image 1 and")
    assert set(first) == set(one)
    for name, expected in one.items():
        if isinstance(expected, dict):
            assert first[name] == pytest.approx(expected, rel=1e-6), name
        else:
            assert first[name] == expected


@pytest.fixture(scope="module")
def found(home: Path) -> tuple[Found, Found, Found]:
    """What became of the runs: in one process, and in each of two."""
    one: Found = {}
    for kind in ("prior", "adversarial"):
        train_to(one, kind, jobs.sharded_run(kind, home), home / "one" / kind, ALONE)
    with during_loss(ALONE, 4, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        train_to(one, "from-one", jobs.sharded_run("prior", home), home / "from-one", ALONE)
    assert one["from-one"]["error"].startswith("Stopped: stopped by SIGTERM after step 5")
    launch("runs", home, home / "two", script=jobs.__file__)
    first, second = (json.loads((home / "two" / f"runs-{rank}.json").read_text()) for rank in (0, 1))
    return one, first, second


def _state(run: Path, part: str, step: int = STEPS) -> dict[str, Tensor]:
    return SavedTensors(run / "checkpoints" / f"step-{step:08d}").load_all(part)


@pytest.mark.parametrize(("kind", "largest", "share"), [("prior", 1e-6, 0), ("adversarial", 1e-3, 1e-4)])
def test_whole_runs_end_alike(
    kind: str, largest: float, share: float, home: Path, found: tuple[Found, Found, Found]
) -> None:
    one, first, second = (ranks[kind] for ranks in found)
    assert first["scores"] == second["scores"]
    assert first["scores"] == pytest.approx(one["scores"], rel=1e-3)
    runs = [home / "one" / kind, home / "two" / kind]
    for part in ("module", "average", "optimizer", "task"):
        if _state(runs[0], part):
            difference, far = largest_and_share(_state(runs[0], part), _state(runs[1], part))
            print(f"{kind}, {part}: differ by {difference:.2g}, {far:.2g} of them by more than 1e-5")
            assert difference < largest and far <= share
    assert "2 processes with slices of " in first["said"][0] and second["said"] == []
    records = [read_log(run / "log.jsonl") for run in runs]
    assert [(r["kind"], r["step"]) for r in records[0]] == [(r["kind"], r["step"]) for r in records[1]]
    for name in ("best", "model"):  # plain models, whoever trained them
        whole, put_together = (
            {file.name: read_tensors(file) for file in (run / name).glob("*.safetensors")} for run in runs
        )
        assert set(whole) == set(put_together)
        assert all(largest_and_share(whole[file], put_together[file])[0] < largest for file in whole)


def test_each_process_writes_its_slices(home: Path, found: tuple[Found, Found, Found]) -> None:
    folder = home / "two" / "prior" / "checkpoints" / f"step-{STEPS:08d}"
    assert {file.name for file in folder.iterdir()} == {
        "anchor.json", "average.safetensors", "digests.json", "module.safetensors", "optimizer.safetensors",
        "slices.json", "slices-00000.safetensors", "slices-00001.safetensors", "state.json",
        "task.safetensors",
    }  # fmt: skip
    assert set(json.loads((folder / "digests.json").read_text())) == {
        file.name for file in folder.iterdir() if file.name not in ("anchor.json", "digests.json")
    }
    slices = [read_tensors(folder / f"slices-0000{rank}.safetensors") for rank in (0, 1)]
    name = "optimizer/blocks.1.mlp.fc1.weight|exp_avg"
    whole = _state(home / "two" / "prior", "optimizer")[name.removeprefix("optimizer/")]
    assert torch.equal(torch.cat([given[name] for given in slices]), whole) and len(slices[0][name]) == 32


def test_stopped_and_gone_on_with(home: Path, found: tuple[Found, Found, Found], tmp_path: Path) -> None:
    """By two processes: the same bits. By one, by two with whole models, or after one: up to rounding."""
    for ranks in found[1:]:
        assert ranks["stopped"]["error"].startswith("Stopped: stopped by SIGTERM after step 5; run the same")
    undisturbed, alone = home / "two" / "prior", home / "one" / "prior"
    for part in ("module", "average", "optimizer"):
        expected, given = _state(undisturbed, part), _state(home / "two" / "resumed", part)
        assert all(torch.equal(given[name], expected[name]) for name in expected)
    assert found[1]["resumed"]["scores"] == found[1]["prior"]["scores"]
    folder = Path(shutil.copytree(home / "two" / "stopped", tmp_path / "run"))
    _, said = train_quietly(jobs.sharded_run("prior", home), folder)
    assert "going on after step 5 of 12" in said
    assert "going on after step 5 of 12" in found[1]["from-one"]["said"]
    for name, run in (("then one", folder), ("after one", home / "two" / "from-one")):
        difference, _ = largest_and_share(_state(run, "module"), _state(alone, "module"))
        print(f"{name}: weights differ by {difference:.2g}")
        assert difference < 1e-6


def test_damaged_slices_are_passed_over_by_all(home: Path, found: tuple[Found, Found, Found]) -> None:
    """And whole models go on where slices ended."""
    said = found[1]["damaged"]["said"]
    assert "checkpoint passed over: " in said[1] and "slices-00001.safetensors was changed or dam" in said[1]
    assert said[2] == "going on after step 4 of 12" and said[0].endswith(", 2 processes")
    run = home / "two" / "damaged"
    assert not (run / "checkpoints" / f"step-{STEPS:08d}" / "slices.json").exists()
    assert largest_and_share(_state(run, "module"), _state(home / "one" / "prior", "module"))[0] < 1e-6


def test_what_one_process_cannot_write_is_an_error_of_all(
    home: Path, found: tuple[Found, Found, Found]
) -> None:
    for ranks in found[1:]:
        assert ranks["full"]["error"] == "SharedError: [Errno 28] No space left on device"
    checkpoints = home / "two" / "full" / "checkpoints"
    assert sorted(item.name for item in checkpoints.iterdir()) == ["step-00000001", "step-00000002"]
