"""``ledger.audit_every``: a fresh process takes a step again, and finds what was spoiled."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nextscale.cli import main
from nextscale.data import loader
from nextscale.distributed import Distributed
from nextscale.integrity.ledger import FILE, follow
from nextscale.integrity.settings import LedgerSettings
from nextscale.train import auditing
from nextscale.train.run import _check_processes
from pairs_for_tests import train_by_two
from runs_for_tests import STEPS, make_home, tiny_run, train_quietly


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("audit"))


def _run(home: Path, every: int, *, kind: str = "prior", **more: Any) -> Any:
    run = tiny_run(kind, home, keep=9)
    ledger = run.ledger.model_copy(update={"audit_every": every})
    return run.model_copy(update={"ledger": ledger, **more})


def _records(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in follow(folder / FILE) if record["kind"] == kind]


@pytest.mark.parametrize(("kind", "every"), [("kept tokens", 6), ("adversarial", 12)])
def test_an_honest_run_is_audited_and_comes_out_the_same(
    kind: str, every: int, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last step is audited before the last checkpoint is written."""
    more: dict[str, Any] = {"kind": kind} if kind != "kept tokens" else {"cache_views": 2}
    scores, said = train_quietly(_run(home, every, **more), tmp_path / "run")
    outcomes = [(record["step"], record["outcome"]) for record in _records(tmp_path / "run", "audit")]
    steps = list(range(every, STEPS + 1, every))
    assert outcomes == [(step, "as recorded") for step in steps], said
    assert [record["step"] for record in _records(tmp_path / "run", "weights")] == steps
    assert not (tmp_path / "run" / auditing.FOLDER).exists()
    assert scores == train_quietly(_run(home, 0, **more), tmp_path / "other")[0]
    assert main(["verify", str(tmp_path / "run")]) == 0
    assert f"{len(steps)} audit" in capsys.readouterr().out


def _flip_gradient(patch: pytest.MonkeyPatch) -> None:
    step, calls = torch.optim.AdamW.step, itertools.count(1)

    def flipped(self: torch.optim.AdamW, closure: Any = None) -> Any:
        if next(calls) == 6:
            self.param_groups[0]["params"][0].grad.neg_()
        return step(self, closure)

    patch.setattr(torch.optim.AdamW, "step", flipped)


def _other_order(patch: pytest.MonkeyPatch) -> None:
    order = loader._order
    patch.setattr(loader, "_order", lambda *words: order(*words)[::-1])


def _other_chance(patch: pytest.MonkeyPatch) -> None:
    uniforms = loader.sample_uniforms
    patch.setattr(loader, "sample_uniforms", lambda *words: uniforms(*words)[::-1].copy())


@pytest.mark.attack(by="audit", names="step, number or tensor")
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_flip_gradient, "its weights; after step 6, 1 tensors differ, the first one "),
        (_other_order, "batch, "),
        (_other_chance, "batch, "),
    ],
)
def test_what_is_spoiled_in_memory_ends_the_run(
    spoil: Any, says: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No look at the memory is taken here: the numbers tell."""
    with monkeypatch.context() as patch:
        spoil(patch)
        with pytest.raises(ValueError, match=f"step 6 again says: step 6 comes out otherwise: {says}"):
            train_quietly(_run(home, 6), tmp_path / "run")
    places = sorted(place.name for place in (tmp_path / "run" / "checkpoints").iterdir())
    assert places == ["step-00000004"]
    (record,) = _records(tmp_path / "run", "audit")
    assert record["step"] == 6 and record["outcome"] == "otherwise"


def test_a_step_that_cannot_be_audited_is_told(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [sys.executable, "-c", "raise SystemExit('no memory left')"]
    monkeypatch.setattr(auditing, "_command", lambda *_: words)
    _, said = train_quietly(_run(home, 5), tmp_path / "run")
    assert said.count("step 5 could not be audited: exit code 1; it said last: no memory left") == 1
    assert main(["verify", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"note: record \d+: step 10, taken again by a fresh process: not taken: exit code 1; it said",
        out,
    )


@pytest.mark.slow
def test_two_processes_are_audited_by_two(home: Path, tmp_path: Path) -> None:
    done = train_by_two(home, tmp_path / "run", "honestly", audit_every=12)
    assert [code for code, *_ in done] == [0, 0], done
    outcomes = [(record["step"], record["outcome"]) for record in _records(tmp_path / "run", "audit")]
    assert outcomes == [(12, "as recorded")]


@pytest.mark.attack(by="audit", names="step and both losses")
@pytest.mark.slow
def test_a_process_that_lies_ends_the_run_of_both(home: Path, tmp_path: Path) -> None:
    done = train_by_two(home, tmp_path / "run", "lie", audit_every=6)
    assert [code for code, *_ in done] == [1, 1]
    assert all("step 6 comes out otherwise: loss was" in text for *_, text in done), done


def test_refusals(home: Path) -> None:
    with pytest.raises(ValueError, match=r"audit_every would have no effect with ledger\.enabled false"):
        LedgerSettings(enabled=False, audit_every=10)
    two = Distributed(0, 2, torch.device("cpu"))
    run = _run(home, 10)
    run = run.model_copy(update={"loop": run.loop.model_copy(update={"sharding": "full"})})
    with pytest.raises(ValueError, match=r"audit_every 10 with loop\.sharding full"):
        _check_processes(run, two)
