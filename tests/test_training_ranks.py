"""Training on two processes is training on one: gradients, weights, whole runs, and how they end."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ranks_for_tests
from models_for_tests import write_pictures
from nextscale.checkpoint import read_tensors
from nextscale.data.loader import places_of_step
from nextscale.evaluate.moments import Moments
from nextscale.integrity.ledger import follow
from nextscale.train.audit import audit
from nextscale.train.logs import read_log
from ranks_for_tests import (
    ALONE,
    finish,
    free_port,
    launch,
    rank_environment,
    start,
)
from runs_for_tests import (
    STEPS,
    largest_and_share,
    largest_difference,
    make_home,
    settled,
    tiny_run,
    train_quietly,
)
from test_cli_train import TINY

pytestmark = pytest.mark.slow
Found = dict[str, Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, the same with three damaged ones, and a tokenizer."""
    home = make_home(tmp_path_factory.mktemp("ranks"))
    shutil.copytree(home / "pictures", home / "damaged")
    for file in sorted((home / "damaged").rglob("*.png"))[2:9:3]:
        file.write_bytes(file.read_bytes()[:60])
    return home


@pytest.fixture(scope="module")
def measured(home: Path) -> Path:
    """What one process and two have measured."""
    launch("measure", home, home / "measured-2")
    (home / "measured-1").mkdir()
    ranks_for_tests.measure(home, home / "measured-1", ALONE)
    return home


@pytest.mark.parametrize(
    ("name", "largest"),
    [("prior-gradients", 1e-5), ("adversarial-gradients", 1e-5), ("double", 1e-9), ("codes", 1e-5)],
)
def test_two_processes_compute_what_one_computes(name: str, largest: float, measured: Path) -> None:
    """Codes: weights after eight steps of AdamW."""
    first, second = (read_tensors(measured / "measured-2" / f"{name}-{rank}.safetensors") for rank in (0, 1))
    one = read_tensors(measured / "measured-1" / f"{name}-0.safetensors")
    assert all(torch.equal(first[key], second[key]) for key in one), "equal to the bit on all ranks"
    if name == "adversarial-gradients":  # originals and reconstructions pull at it alike: 0 up to rounding
        assert abs(float(one.pop("discriminator.head.bias"))) < 1e-6
        assert abs(float(first.pop("discriminator.head.bias"))) < 1e-6
    if name == "codes":
        one, first = settled(one), settled(first)
    difference = largest_difference(one, first)
    print(f"{name}: largest difference {difference:.3g}")
    assert difference < largest
    if name == "codes":
        assert torch.equal(one["idle_steps_V"], first["idle_steps_V"]), "the same codes were used"


@pytest.fixture(scope="module")
def found(home: Path) -> tuple[Found, Found, Found]:
    """What became of the runs: in one process, and in each of two."""
    launch("runs", home, home / "runs-2")
    (home / "runs-1").mkdir()
    ranks_for_tests.runs(home, home / "runs-1", ALONE)
    one, first, second = (
        json.loads((home / folder).read_text())
        for folder in ("runs-1/runs-0.json", "runs-2/runs-0.json", "runs-2/runs-1.json")
    )
    return one, first, second


def _state(run: Path, part: str, step: int = STEPS) -> dict[str, Tensor]:
    return read_tensors(run / "checkpoints" / f"step-{step:08d}" / f"{part}.safetensors")


@pytest.mark.parametrize(
    "kind", ["prior", "next_token", "diffusion", "tokenizer", "adversarial", "kept", "skipping"]
)
def test_whole_runs_end_alike(kind: str, home: Path, found: tuple[Found, Found, Found]) -> None:
    one, first, second = (ranks[kind] for ranks in found)
    assert first["scores"] == second["scores"] and set(first["scores"]) == set(one["scores"])
    runs = [home / "runs-1" / kind, home / "runs-2" / kind]
    differences = {
        part: largest_and_share(_state(runs[0], part), _state(runs[1], part))
        for part in ("module", "average")
    }
    scores = max(abs(first["scores"][name] / value - 1) for name, value in one["scores"].items() if value)
    print(f"{kind}: weights differ by {differences}, scores by {scores:.3g}")
    largest, share = (1e-3, 1e-4) if kind == "adversarial" else (1e-6, 0)
    assert all(found[0] < largest and found[1] <= share for found in differences.values()) and scores < 1e-2
    logs = [read_log(run / "log.jsonl") for run in runs]
    assert [(r["kind"], r["step"]) for r in logs[0]] == [(r["kind"], r["step"]) for r in logs[1]]
    assert logs[1][0]["loss"] == pytest.approx(logs[0][0]["loss"], rel=1e-4)
    assert (runs[0] / "run.json").read_bytes() == (runs[1] / "run.json").read_bytes()
    files = [
        sorted(str(f.relative_to(run)) for f in run.rglob("*") if "tensorboard" not in str(f)) for run in runs
    ]
    assert files[0] == files[1]
    assert first["said"][0] == f"{one['said'][0]}, 2 processes" and second["said"] == []


def test_kept_tokens_are_made_once(home: Path, found: tuple[Found, Found, Found]) -> None:
    runs = [home / "runs-1" / "kept" / "tokens", home / "runs-2" / "kept" / "tokens"]
    for name in ("tokens.npy", "labels.npy", "cache.json"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes()


def test_every_ranks_bad_images_are_listed(home: Path, found: tuple[Found, Found, Found]) -> None:
    lists = [(home / name / "skipping" / "skipped_images.txt").read_text() for name in ("runs-1", "runs-2")]
    assert lists[0] == lists[1] and len(lists[0].splitlines()) == 3


def test_sigterm_to_one_rank_stops_both_and_one_process_goes_on(
    home: Path, found: tuple[Found, Found, Found], tmp_path: Path
) -> None:
    for ranks in found[1:]:
        assert ranks["stopped"]["error"].startswith("Stopped: stopped by SIGTERM after step 5; run the same")
    folder = Path(shutil.copytree(home / "runs-2" / "stopped", tmp_path / "run"))
    assert sorted(item.name for item in (folder / "checkpoints").iterdir())[-1] == "step-00000005"
    scores, said = train_quietly(tiny_run("prior", home), folder)
    assert "going on after step 5 of 12" in said
    assert scores == pytest.approx(found[0]["prior"]["scores"], rel=1e-3)
    resumed, undisturbed = (_state(home / "runs-2" / name, "module") for name in ("resumed", "prior"))
    assert all(torch.equal(resumed[key], undisturbed[key]) for key in undisturbed)
    assert found[1]["resumed"]["scores"] == found[1]["prior"]["scores"]
    difference, _ = largest_and_share(_state(home / "runs-1" / "prior", "module"), _state(folder, "module"))
    print(f"two processes, then one: weights differ by {difference:.3g}")
    assert difference < 1e-3


def test_the_ledger_knows_what_each_process_read(home: Path, found: tuple[Found, Found, Found]) -> None:
    for name, count in (("runs-1", 1), ("runs-2", 2)):
        folder = home / name / "prior"
        assert audit(folder).found == []
        saved = [r["batches"] for r in follow(folder / "ledger.jsonl") if r["kind"] == "checkpoint"]
        assert len(saved) == 3 and all(len(set(batches)) == count for batches in saved)
    assert audit(home / "runs-2" / "stopped").found == []


def test_a_part_without_finite_numbers_is_left_out_by_all(found: tuple[Found, Found, Found]) -> None:
    _, first, second = (ranks.get("spoiled") for ranks in found)
    assert first["scores"] == second["scores"]
    assert any(line.startswith("skipped step 5: loss nan, not finite: ") for line in first["said"])
    places = places_of_step(4, batch_size=4, num_samples=19, seed=0)[2:]  # those of the rank that was spoiled
    assert any(line.endswith(f"samples {places[0].sample}, {places[1].sample}") for line in first["said"])
    for ranks in found[1:]:
        assert ranks["fails"]["error"].startswith("SharedError: step 5: loss nan, not finite")
    assert found[1]["fails"]["error"] == found[2]["fails"]["error"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bad", "SharedError: image .*png cannot be read"),
        ("other", "SharedError: the classifier trains in one process: its batch norm"),
        (
            "odd",
            "SharedError: loop.batch_size 6 cannot be cut into 2 processes x loop.accumulate 2 equal parts: "
            "give a multiple of 4",
        ),
        (
            "differing",
            "SharedError: the processes train .*: rank 0 has loop.seed = 0, not 1 as rank 1: start",
        ),
        ("notes", "SharedError: .*notes exists and is no run of nextscale: give another --out"),
    ],
)
def test_what_is_refused_is_refused_by_all(
    name: str, message: str, found: tuple[Found, Found, Found]
) -> None:
    assert found[1][name]["error"] == found[2][name]["error"]
    assert re.match(message, found[1][name]["error"], re.DOTALL), found[1][name]["error"]


def test_each_way_of_exchanging(home: Path) -> None:
    launch("exchange", home, home / "exchange")
    first, second = (json.loads((home / "exchange" / f"exchange-{rank}.json").read_text()) for rank in (0, 1))
    assert (first.pop("rank"), second.pop("rank")) == (0, 1)
    assert first == second
    doubled = (2 * torch.arange(24.0)).view(1, 2, 3, 4).tolist()
    assert first["sums"] == [[[4.0] * 3] * 2, 21, doubled, [], [0.1 + 0.2]]
    assert first["first"] == [[0.0, 3.0]] and first["agree"] == [True, False, True]
    assert first["gather"] == ["", "é"] and first["of_first"] == 0.1
    whole = Moments(2)
    whole.add(torch.cat([ranks_for_tests.moment_rows(rank) for rank in (0, 1)]))
    assert first["moments"]["count"] == 7
    assert first["moments"]["mean_D"] == pytest.approx(whole.mean_D.tolist(), rel=1e-14)
    covariance = torch.tensor(first["moments"]["covariance_DD"], dtype=torch.float64)
    assert torch.allclose(covariance, whole.covariance_DD, rtol=1e-10, atol=0)
    assert first["errors"] == [
        "SharedError: no images here", "SharedError: [Errno 28] disk full",
        "SharedBug: rank 1 failed: KeyError('bug')",
    ]  # fmt: skip
    assert first["each"] == [1, 2, "third is bad"]
    assert first["same"] == "steps differ: rank 0 has step 0, rank 1 has step 1"


# the command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, a recipe and a finished tokenizer."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures", 8, (8, 8), num_classes=2)
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def _command(*changes: str) -> list[str]:
    given = ["--data.source", "pictures", "--out", "run", "--device", "cpu", *changes]
    return ["-m", "nextscale.cli", "train", "tokenizer", "tiny.toml", *given]


def test_the_command_stops_and_refuses_on_all_ranks(here: Path) -> None:
    processes = start(_command("--loop.num_steps", "100000", "--loop.save_every", "5"))
    deadline = time.monotonic() + 200
    while not list((here / "run" / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    (first, _, said), (second, output, nothing) = finish(processes)
    assert (first, second) == (75, 75), (said, nothing)
    assert said.startswith("nextscale: stopped by SIGTERM after step ") and nothing == output == ""
    (first, _, said), (second, output, nothing) = finish(start(_command("--loop.num_steps", "7")))
    assert (first, second) == (2, 2), (said, nothing)
    assert said.startswith("nextscale: run holds a run with loop.num_steps = 100000, not 7: ")
    assert said.count("\n") == 1 and nothing == output == ""


def test_who_is_left_behind_by_a_dead_process_ends_too(here: Path) -> None:
    processes = start(_command("--loop.num_steps", "100000", "--data.num_workers", "1"))
    log, deadline = here / "run" / "log.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[1].kill()
    assert processes[0].wait(timeout=60) == 1
    finish(processes)


def test_two_machines_make_one_run(here: Path) -> None:
    """Two agents of torchrun, each with one process, which holds slices."""
    port = free_port()
    group = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
    group += ["--master-port", str(port)]
    command = _command("--loop.num_steps", "3", "--loop.sharding", "full")
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--node-rank", str(node), *group, *command],
            env=_without_rank(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for node in range(2)
    ]  # fmt: skip
    (first, output, said), (second, nothing, more) = finish(agents)
    assert (first, second) == (0, 0), said + more
    assert "2 processes with slices of " in output and "model: run/model" in output and nothing == ""
    assert [record["step"] for record in read_log(here / "run" / "log.jsonl")] == [3, 3]


def _without_rank() -> dict[str, str]:
    environment = rank_environment(0, 1, 0)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del environment[name]
    return environment
