"""``nextscale replay``: an honest stretch comes out to the bit; a spoiled step is named, with its tensor."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nextscale.cli import main
from nextscale.distributed import Distributed
from nextscale.integrity.ledger import follow
from nextscale.train import loop as train_loop
from nextscale.train.run import _check_processes
from nextscale.train.settings import PriorRun
from nextscale.train.step import StepResult
from nextscale.train.stopping import Stopped
from pairs_for_tests import by_two, train_by_two
from runs_for_tests import make_home, tiny_run, train_quietly


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("replay"))


def _run(home: Path, *, weights_every: int = 0, kind: str = "prior", **loop: Any) -> Any:
    run = tiny_run(kind, home, keep=9, **loop)
    ledger = run.ledger.model_copy(update={"weights_every": weights_every})
    return run.model_copy(update={"ledger": ledger})


def _replay(capsys: pytest.CaptureFixture[str], folder: Path, *words: object) -> tuple[int, str]:
    code = main(["replay", str(folder), *map(str, words), "--device", "cpu", "--quiet"])
    out, err = capsys.readouterr()
    return code, out + err


@pytest.mark.parametrize("kind", ["prior", "adversarial", "next_token", "diffusion", "decoder", "classifier"])
def test_an_honest_stretch_is_the_same_to_the_bit(
    kind: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_quietly(_run(home, kind=kind), tmp_path / "run")
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    for first, last, count in ((0, 3, 3), (5, 9, 5), (8, 12, 4)):
        code, text = _replay(capsys, tmp_path / "run", "--from", first, "--to", last)
        assert code == 0, text
        assert f"{count} steps and" in text and "are as recorded, to the bit" in text
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}


def _spoil(monkeypatch: pytest.MonkeyPatch, step: int, how: Any) -> None:
    """Have one step, and no other, followed by ``how(module)``."""
    take, numbers = train_loop.take_step, itertools.count(1)

    def take_spoiled(task: Any, batch: Any, optimizer: Any, **more: Any) -> StepResult:
        result = take(task, batch, optimizer, **more)
        if next(numbers) == step:
            how(task.module)
        return result

    monkeypatch.setattr(train_loop, "take_step", take_spoiled)


@pytest.fixture(scope="module")
def name_of_a_weight(home: Path) -> str:
    """One in the middle of the model."""
    from nextscale.train.run import _task_of  # the module as a run builds it

    run = _run(home)
    assert isinstance(run, PriorRun)
    task, _ = _task_of(run, home / "none", device=torch.device("cpu"), skipped=None, progress=False)
    names = [name for name, value in task.module.named_parameters() if "blocks.1" in name and value.ndim == 2]
    return names[0]


@pytest.mark.attack(by="replay", names="step and tensor")
@pytest.mark.parametrize("weights_every", [0, 1])
def test_one_spoiled_weight_is_located(
    weights_every: int, home: Path, tmp_path: Path, name_of_a_weight: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def how(module: torch.nn.Module) -> None:
        with torch.no_grad():
            dict(module.named_parameters())[name_of_a_weight] += 0.1

    with monkeypatch.context() as patch:
        _spoil(patch, 6, how)
        train_quietly(_run(home, weights_every=weights_every), tmp_path / "run")
    assert main(["verify", str(tmp_path / "run")]) == 0  # a ledger alone cannot know
    capsys.readouterr()
    assert _replay(capsys, tmp_path / "run", "--from", 8, "--to", 12)[0] == 0  # it was a moment
    code, text = _replay(capsys, tmp_path / "run", "--from", 4, "--to", 8)
    assert code == 1
    found = [line for line in text.splitlines() if line.startswith("FOUND")]
    if weights_every:  # the weights of step 6 themselves: one tensor, and no other
        assert found[0] == "FOUND: step 6 comes out otherwise: its weights"
        assert found[1] == f"FOUND: after step 6, 1 tensors differ, the first one {name_of_a_weight}"
    else:  # step 7 was made with them
        assert re.match(r"FOUND: step 7 comes out otherwise: loss was \S+, is \S+", found[0])
        assert re.match(r"FOUND: after step 8, \d+ tensors differ, the first one ", found[1])


@pytest.mark.attack(by="replay", names="step and tensor")
def test_a_flipped_gradient_is_located(
    home: Path, tmp_path: Path, name_of_a_weight: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Its norm stays the same: only the weights tell."""
    step = torch.optim.AdamW.step
    calls = 0

    def flipped(self: torch.optim.AdamW, closure: Any = None) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            self.param_groups[0]["params"][0].grad.neg_()
        return step(self, closure)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", flipped)
        train_quietly(_run(home, weights_every=1), tmp_path / "run")
    code, text = _replay(capsys, tmp_path / "run", "--from", 4, "--to", 8)
    assert code == 1
    assert "FOUND: step 6 comes out otherwise: its weights" in text and "1 tensors differ" in text


def test_tolerance_lets_rounding_pass_and_nothing_else(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_quietly(_run(home), tmp_path / "run")
    ledger = tmp_path / "run" / "ledger.jsonl"
    records = list(follow(ledger))
    from nextscale.integrity.ledger import EMPTY, Ledger, exact

    ledger.unlink()
    with Ledger(ledger, EMPTY) as forged:  # what another machine might have written
        for record in records:
            given = {key: value for key, value in record.items() if key not in ("number", "previous", "hash")}
            if given["kind"] == "step":
                given["loss"] = exact(float.fromhex(given["loss"]) * (1 + 1e-6))
            forged.append(given.pop("kind"), **given)
    code, text = _replay(capsys, tmp_path / "run", "--from", 0, "--to", 4)
    assert code == 1 and "step 1 comes out otherwise: loss was" in text
    assert _replay(capsys, tmp_path / "run", "--from", 0, "--to", 4, "--tolerance", 1e-5)[0] == 0
    assert _replay(capsys, tmp_path / "run", "--from", 0, "--to", 4, "--tolerance", 1e-7)[0] == 1


def _trained_by_two(home: Path, folder: Path, how: str) -> list[str]:
    """Train; returns the command that replays a stretch."""
    assert [code for code, *_ in train_by_two(home, folder, how)] == [0, 0]
    replay = [sys.executable, "-m", "nextscale.cli", "replay", str(folder), "--device", "cpu"]
    return [*replay, "--from", "4", "--to", "9"]


@pytest.mark.slow
def test_two_processes_replay_what_two_have_trained(home: Path, tmp_path: Path) -> None:
    command = _trained_by_two(home, tmp_path / "run", "honestly")
    said = _together(command)
    assert "5 steps and" in said and "to the bit" in said
    alone = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert alone.returncode == 2 and "was trained by 2 processes, here are 1" in alone.stderr


@pytest.mark.attack(by="replay", names="step and both losses")
@pytest.mark.slow
def test_a_process_that_lies_is_found(home: Path, tmp_path: Path) -> None:
    """It trains one step on other labels than it says that it has read."""
    said = _together(_trained_by_two(home, tmp_path / "run", "lie"), code=1)
    assert "FOUND: step 6 comes out otherwise: loss was" in said


def _together(command: list[str], *, code: int = 0) -> str:
    """Run a command as two processes; what the first one says."""
    done = by_two(command)
    assert [found for found, *_ in done] == [code, 0], done
    return done[0][1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", 5, "--to", 5], "expected --from below --to"),
        (["--from", -1, "--to", 5], "expected --from below --to"),
        (["--from", 0, "--to", 13], "among the 12 steps"),
        (["--from", 0, "--to", 5, "--tolerance", -1], "expected 0 or more"),
    ],
)
def test_refusals(
    words: list[object], message: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (home / "run").exists():
        train_quietly(_run(home), home / "run")
    code, text = _replay(capsys, home / "run", *words)
    assert code == 2 and message in text
    code, text = _replay(capsys, tmp_path, "--from", 0, "--to", 1)
    assert code == 2 and "no run with a ledger" in text


def test_a_broken_ledger_is_no_witness(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (home / "run").exists():
        train_quietly(_run(home), home / "run")
    shutil.copytree(home / "run", tmp_path / "run")
    ledger = tmp_path / "run" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"kind":"step"', '"kind":"stop"', 1))
    code, text = _replay(capsys, tmp_path / "run", "--from", 0, "--to", 4)
    assert code == 2 and "was edited or damaged" in text and "see nextscale verify" in text


def test_a_run_ends_for_today_and_goes_on(home: Path, tmp_path: Path) -> None:
    whole, _ = train_quietly(_run(home), tmp_path / "whole")
    with pytest.raises(Stopped, match=r"stopped by loop\.stop_after 5 after step 5"):
        train_quietly(_run(home, stop_after=5), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    assert (tmp_path / "run" / "checkpoints" / "step-00000005").exists()
    assert train_quietly(_run(home), tmp_path / "run")[0] == whole


def test_a_run_that_was_interrupted_is_replayed_as_a_whole(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoints stand elsewhere, so what is counted from one to the next is counted otherwise."""
    with pytest.raises(Stopped):
        train_quietly(_run(home, stop_after=7), tmp_path / "run")
    train_quietly(_run(home), tmp_path / "run")
    code, text = _replay(capsys, tmp_path / "run", "--from", 0, "--to", 12)
    assert code == 0, text


def test_slices_have_no_whole_weights_to_digest(home: Path) -> None:
    two = Distributed(0, 2, torch.device("cpu"))
    _check_processes(_run(home, weights_every=0, sharding="full"), two)
    with pytest.raises(ValueError, match=r"weights_every 1 with loop\.sharding full"):
        _check_processes(_run(home, weights_every=1, sharding="full"), two)
