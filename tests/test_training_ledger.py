"""The ledger of whole runs: what it holds, and what is refused when a folder does not fit it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nextscale import checkpoint
from nextscale.integrity.anchors import published
from nextscale.integrity.found import look
from nextscale.integrity.history import read_history
from nextscale.integrity.ledger import EMPTY, Ledger, follow, head_of
from nextscale.train.prior_task import PriorTask
from nextscale.train.schedules import learning_rate
from nextscale.train.stopping import Stopped
from runs_for_tests import STEPS, Run, make_home, tiny_run, train_quietly


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("ledgers"))


@pytest.fixture(scope="module")
def died(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died after step 10, with checkpoints of steps 4 and 8; to be copied."""
    folder = tmp_path_factory.mktemp("died") / "run"
    _die(tiny_run("prior", home), folder, step=10)
    return folder


@pytest.fixture
def run_folder(died: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(died, tmp_path / "run"))


def _die(run: Run, folder: Path, *, step: int) -> None:
    def fail(self: PriorTask, number: int) -> None:
        if number == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PriorTask, "after_step", fail)
        with pytest.raises(KeyboardInterrupt):
            train_quietly(run, folder)


def _records(folder: Path, kind: str = "") -> list[dict[str, Any]]:
    return [record for record in follow(folder / "ledger.jsonl") if kind in ("", record["kind"])]


def _with(run: Run, **ledger: Any) -> Run:
    return run.model_copy(update={"ledger": run.ledger.model_copy(update=ledger)})


def _accept(run: Run, folder: Path, expected: str) -> Run:
    """The run that is told to go on in spite of the refusal, which must say what is expected."""
    with pytest.raises(ValueError, match=expected) as caught:
        train_quietly(run, folder)
    code = re.search(r"add --ledger\.accept (\w{12})$", str(caught.value))
    assert code
    return _with(run, accept=code[1])


def test_what_a_whole_run_writes_down(home: Path, tmp_path: Path) -> None:
    run, folder = tiny_run("prior", home), tmp_path / "run"
    scores, _ = train_quietly(run, folder)
    records = _records(folder)
    start = records[0]
    assert (start["kind"], start["step"], start["processes"], start["device"]) == ("start", 0, 1, "cpu")
    assert (
        start["settings"]["optimizer"]["base_lr"] == 0.1 and start["versions"]["torch"] == torch.__version__
    )
    assert start["inputs"] == {"tokenizer_sha256": checkpoint.digest(home / "given/tokenizer.safetensors")}
    steps = _records(folder, "step")
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    for record in steps:
        rate = learning_rate(run.optimizer, record["step"] - 1, num_steps=STEPS, batch_size=4)
        assert [float.fromhex(text) for text in record["lr"]] == [rate]
        assert set(record["norms"]) == {"gradient_norm"} and float.fromhex(record["loss"]) > 0
    assert len({record["batch"] for record in steps}) == STEPS and min(r["ms"] for r in steps) > 0
    assert [record["step"] for record in _records(folder, "checkpoint")] == [4, 8, 12]
    assert [(r["name"], r["step"]) for r in _records(folder, "export")][-1] == ("model", STEPS)
    end = records[-1]
    assert {name: float.fromhex(text) for name, text in end["scores"].items()} == scores
    log = {r["step"]: r for r in map(json.loads, (folder / "log.jsonl").read_text().splitlines())}
    losses = [float.fromhex(record["loss"]) for record in steps[:3]]
    assert log[3]["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_a_checkpoint_is_recorded_tensor_by_tensor_before_it_counts(died: Path) -> None:
    last = died / "checkpoints" / "step-00000008"
    record = _records(died, "checkpoint")[-1]
    assert record["files"] == json.loads((last / "digests.json").read_text())
    names = {
        f"{part}/{name}"
        for part in ("module", "average", "optimizer", "task")
        for name in checkpoint.read_tensors(last / f"{part}.safetensors")
    }
    assert set(record["tensors"]) == names and len(set(record["tensors"].values())) > 10
    anchor = json.loads((last / "anchor.json").read_text())
    assert (anchor["number"], anchor["hash"]) == (record["number"], record["hash"])
    assert anchor["ledger"] == _records(died)[0]["hash"]
    assert "anchor.json" not in record["files"]


def test_going_on_repeats_steps_to_the_bit_and_says_so(home: Path, run_folder: Path) -> None:
    before = (run_folder / "ledger.jsonl").read_bytes()
    train_quietly(tiny_run("prior", home), run_folder)
    assert (run_folder / "ledger.jsonl").read_bytes().startswith(before)
    resume = _records(run_folder, "resume")
    assert [(record["step"], record["recorded"]) for record in resume] == [(8, 11)]
    steps = [record["step"] for record in _records(run_folder, "step")]
    assert steps == [*range(1, 12), *range(9, 13)]
    history = read_history(run_folder / "ledger.jsonl")
    assert (history.faults, history.repeats) == ([], [])
    assert look(run_folder, anchor=None).differences == ()


@pytest.mark.attack(by="start, by the ledger", names="the step")
def test_a_repeated_step_that_comes_out_otherwise_is_told(
    home: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = PriorTask.loss

    def slightly_more(self: PriorTask, batch: Any) -> Any:
        value, numbers = loss(self, batch)
        return value * 1.000001, numbers

    monkeypatch.setattr(PriorTask, "loss", slightly_more)
    train_quietly(tiny_run("prior", home), run_folder)
    told = read_history(run_folder / "ledger.jsonl").repeats
    assert told[0].startswith("step 9 came out otherwise when it was taken again") and "loss" in told[0]


def test_events_are_recorded(home: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [record["error"] for record in _records(run_folder, "failed")] == ["KeyboardInterrupt"]
    with (run_folder / "ledger.jsonl").open("a") as file:
        file.write('{"batch":"12')
    run = tiny_run("prior", home)
    run = run.model_copy(update={"data": run.data.model_copy(update={"on_bad_image": "skip"})})

    def stopped(self: PriorTask, number: int) -> None:
        raise Stopped(number, "SIGTERM")

    with monkeypatch.context() as patch:
        patch.setattr(PriorTask, "after_step", stopped)
        with pytest.raises(Stopped):
            train_quietly(run, run_folder)
    assert [record["torn"] for record in _records(run_folder, "resume")] == ['{"batch":"12']
    assert [(r["name"], r["before"], r["after"]) for r in _records(run_folder, "setting")] == [
        ("settings.data.on_bad_image", '"stop"', '"skip"')
    ]
    assert [record["cause"] for record in _records(run_folder, "stop")] == ["SIGTERM"]


def test_a_skipped_step_is_recorded(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, count = PriorTask.loss, iter(range(100))

    def spoiled(self: PriorTask, batch: Any) -> Any:
        value, numbers = loss(self, batch)
        return (value * float("nan") if next(count) == 1 else value), numbers

    monkeypatch.setattr(PriorTask, "loss", spoiled)
    train_quietly(tiny_run("prior", home, num_steps=3), tmp_path / "run")
    assert [record["loss"] for record in _records(tmp_path / "run", "step")].index("nan") == 1
    assert [record["step"] for record in _records(tmp_path / "run", "skip")] == [2]


# what does not fit


def _edit(folder: Path) -> None:
    text = (folder / "ledger.jsonl").read_text()
    (folder / "ledger.jsonl").write_text(
        text.replace('"step":3}', '"step":3 }').replace('"loss":"0x1', '"loss":"0x0', 1)
    )


def _cut(folder: Path) -> None:
    lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    (folder / "ledger.jsonl").write_text("".join(lines[:4]))


def _remove(folder: Path) -> None:
    (folder / "ledger.jsonl").unlink()


def _write_anew(folder: Path) -> None:
    records = _records(folder)
    _remove(folder)
    with Ledger(folder / "ledger.jsonl", EMPTY) as ledger:
        for record in records:
            for name in ("number", "previous", "hash"):
                del record[name]
            ledger.append(record.pop("kind"), **record)
            if ledger.head.number == 2:
                ledger.append("note", text="nothing happened")


def _other_weights(folder: Path) -> None:
    place = folder / "checkpoints" / "step-00000008"
    tensors = checkpoint.read_tensors(place / "average.safetensors")
    checkpoint.write_tensors(place / "average.safetensors", {name: -value for name, value in tensors.items()})
    (place / "digests.json").unlink()
    anchor = (place / "anchor.json").read_bytes()
    (place / "anchor.json").unlink()
    checkpoint.write_digests(place)
    (place / "anchor.json").write_bytes(anchor)


def _unknown_checkpoint(folder: Path) -> None:
    (folder / "checkpoints" / "step-00000008").rename(folder / "checkpoints" / "step-00000009")


ATTACKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "edited": (_edit, r"ledger\.jsonl: record 2 was edited or damaged"),
    "cut": (
        _cut,
        r"was cut or rolled back: it ends with record 3, .*step-00000004/anchor\.json knows record",
    ),
    "removed": (_remove, r"is gone or empty, though .*anchor\.json knows"),
    "written anew": (_write_anew, r"was written anew: record \d+ is not the one of .*step-00000004"),
    "other weights": (_other_weights, r"step-00000008/average\.safetensors is not the file that the ledger"),
    "unknown checkpoint": (_unknown_checkpoint, r"step-00000009 is not in the ledger"),
}


@pytest.mark.attack(by="start, by the ledger", names="record or file")
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_folder_that_does_not_fit_its_ledger_is_refused_until_that_is_accepted(
    attack: str, home: Path, run_folder: Path
) -> None:
    change, expected = ATTACKS[attack]
    change(run_folder)
    content = {file: file.read_bytes() for file in run_folder.rglob("*") if file.is_file()}
    run = tiny_run("prior", home)
    accepted = _accept(run, run_folder, expected)
    with pytest.raises(ValueError, match=r"add --ledger\.accept"):
        train_quietly(_with(run, accept="000000000000"), run_folder)
    assert content == {file: file.read_bytes() for file in run_folder.rglob("*") if file.is_file()}

    train_quietly(accepted, run_folder)
    starts = [record for record in _records(run_folder) if record["kind"] in ("start", "resume")]
    assert any(re.search(expected, text) for text in starts[-1]["accepted"])
    kept = [file.read_bytes() for file in run_folder.glob("ledger-replaced-*.jsonl")]
    assert kept == (
        [content[run_folder / "ledger.jsonl"]] if attack in ("edited", "cut", "written anew") else []
    )
    assert look(run_folder, anchor=None).differences == ()
    train_quietly(run, run_folder)  # once accepted, a difference is none


@pytest.mark.attack(by="start, by the ledger", names="how many records")
def test_heads_elsewhere_know_what_the_folder_has_forgotten(home: Path, tmp_path: Path) -> None:
    run = _with(tiny_run("prior", home), anchor=str(tmp_path / "far" / "heads.jsonl"))
    folder = tmp_path / "run"
    _die(run, folder, step=10)
    found = published(tmp_path / "far" / "heads.jsonl", run=folder)
    assert [item.head.hash for item in found] == [record["hash"] for record in _records(folder, "checkpoint")]
    _remove(folder)
    shutil.rmtree(folder / "checkpoints")
    _accept(run, folder, r"is gone or empty, though .*heads\.jsonl line \d knows")


def test_a_run_from_before_ledgers_gets_one(home: Path, run_folder: Path) -> None:
    _remove(run_folder)
    for anchor in run_folder.rglob("anchor.json"):
        anchor.unlink()
    train_quietly(tiny_run("prior", home), run_folder)
    kinds = [(record["kind"], record.get("step")) for record in _records(run_folder)[:5]]
    assert kinds == [("start", 8), ("data", None), ("checkpoint", 4), ("checkpoint", 8), ("step", 9)]


def test_settings_of_ledgers(home: Path, run_folder: Path, tmp_path: Path) -> None:
    run = tiny_run("prior", home)
    with pytest.raises(ValueError, match=r"ledger.enabled false would leave a gap in .*ledger\.jsonl"):
        train_quietly(_with(run, enabled=False), run_folder)
    with pytest.raises(ValueError, match="accept abc would have no effect: nothing differs"):
        train_quietly(_with(run, accept="abc"), run_folder)
    train_quietly(_with(tiny_run("prior", home, num_steps=1), enabled=False), tmp_path / "without")
    assert not list((tmp_path / "without").rglob("ledger.jsonl"))
    assert not list((tmp_path / "without").rglob("anchor.json"))
    with pytest.raises(ValueError, match=r"ledger\.anchor x would have no effect with ledger\.enabled false"):
        type(run.ledger)(enabled=False, anchor="x")
    with pytest.raises(ValueError, match=r"ledger\.recheck_every 5 would have no effect without"):
        type(run.ledger)(fingerprint=False, recheck_every=5)
    assert head_of(_records(run_folder)[-1]) == read_history(run_folder / "ledger.jsonl").head
