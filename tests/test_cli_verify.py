"""``nextscale verify``: honest runs pass; what was changed afterwards, or done while training, is named."""

from __future__ import annotations

import itertools
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nextscale.cli import main
from nextscale.integrity.ledger import follow
from nextscale.train import loop as train_loop
from nextscale.train.audit import slow_stretches
from nextscale.train.optimizer import set_rates
from nextscale.train.prior_task import PriorTask
from runs_for_tests import make_home, tiny_run, train_quietly


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a tokenizer, and the finished run ``run``, whose heads are in ``heads.jsonl``."""
    place = make_home(tmp_path_factory.mktemp("verify"))
    run = tiny_run("prior", place)
    run = run.model_copy(
        update={"ledger": run.ledger.model_copy(update={"anchor": str(place / "heads.jsonl")})}
    )
    train_quietly(run, place / "run")
    return place


@pytest.fixture
def run_folder(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


def _verify(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main(["verify", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out + err


def test_an_honest_run_passes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = _verify(capsys, home / "run", "--anchor", home / "heads.jsonl")
    assert code == 0, text
    lines = text.splitlines()
    assert re.fullmatch(r"ledger: \d+ records, 12 of steps", lines[0])
    assert lines[1] == "checkpoints: step-00000008, step-00000012"
    assert "model: written after step 12" in lines and lines[-1] == "events: 1 start, 1 end"


def test_a_run_that_died_and_went_on_passes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: PriorTask, number: int) -> None:
        if number == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PriorTask, "after_step", fail)
        with pytest.raises(KeyboardInterrupt):
            train_quietly(tiny_run("prior", home), tmp_path / "run")
    assert _verify(capsys, tmp_path / "run")[0] == 0
    with (tmp_path / "run" / "ledger.jsonl").open("a") as file:
        file.write('{"half')
    train_quietly(tiny_run("prior", home), tmp_path / "run")
    code, text = _verify(capsys, tmp_path / "run")
    assert code == 0 and "FOUND" not in text
    assert "resume after step 4, though step 7 was recorded: those steps were taken again" in text
    assert "resume after step 4: a crash had torn the last line, '{\"half'" in text
    assert "events: 1 start, 1 failed, 1 resume, 1 end\n" in text


def test_a_checkpoint_that_was_recorded_and_never_took_its_place_is_no_fault(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if target.name == "step-00000008":
            raise OSError("gone")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="gone"):
            train_quietly(tiny_run("prior", home), tmp_path / "run")
    recorded = [
        record["step"] for record in follow(tmp_path / "run/ledger.jsonl") if record["kind"] == "checkpoint"
    ]
    assert recorded == [4, 8]
    _, said = train_quietly(tiny_run("prior", home), tmp_path / "run")
    assert "going on after step 4 of 12" in said
    assert _verify(capsys, tmp_path / "run")[0] == 0


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of the model": (
        lambda run: _flip(run / "model/prior.safetensors"),
        r"model/prior\.safetensors is not the file",
    ),
    "a file of the model is gone": (
        lambda run: (run / "model/config.json").unlink(),
        r"model/config\.json is not the file .* or is missing",
    ),
    "a bit of a checkpoint": (
        lambda run: _flip(run / "checkpoints/step-00000012/average.safetensors"),
        r"average\.safetensors was changed or damaged",
    ),
    "the ledger": (lambda run: _flip(run / "ledger.jsonl"), r"record \d+ was edited or damaged"),
    "no ledger": (lambda run: (run / "ledger.jsonl").unlink(), "is gone or empty"),
}


@pytest.mark.attack(by="verify", names="record, file or model")
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_was_changed_is_found(attack: str, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _verify(capsys, run_folder)[0] == 0
    change, expected = ATTACKS[attack]
    change(run_folder)
    before = {file: file.read_bytes() for file in run_folder.rglob("*") if file.is_file()}
    code, text = _verify(capsys, run_folder)
    assert code == 1 and re.search(rf"^FOUND: .*{expected}", text, re.MULTILINE), text
    assert before == {file: file.read_bytes() for file in run_folder.rglob("*") if file.is_file()}


def test_heads_of_another_run_are_no_proof(
    home: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = _verify(capsys, run_folder, "--anchor", home / "heads.jsonl")
    assert code == 1 and "holds no head of this run" in text


@pytest.mark.attack(by="verify", names="the record")
def test_a_folder_put_back_whole_contradicts_the_heads_elsewhere_only(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, heads = home / "run", home / "heads.jsonl"
    kept = Path(shutil.copytree(folder, tmp_path / "kept"))
    lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if '"kind":"checkpoint"' in line)
    (folder / "ledger.jsonl").write_text("".join(lines[: first + 1]))
    shutil.rmtree(folder / "checkpoints")
    shutil.rmtree(folder / "model")
    try:
        assert _verify(capsys, folder)[0] == 0
        code, text = _verify(capsys, folder, "--anchor", heads)
        assert code == 1 and f"cut or rolled back: it ends with record {first}, {heads} line 2 knows" in text
    finally:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)


@pytest.mark.attack(by="verify", names="step and both rates")
def test_a_learning_rate_that_is_slightly_another_is_found(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def more(optimizer: Any, *, lr: float, weight_decay: float) -> None:
        set_rates(optimizer, lr=lr * 1.001, weight_decay=weight_decay)

    monkeypatch.setattr(train_loop, "set_rates", more)
    train_quietly(tiny_run("prior", home, num_steps=5), tmp_path / "run")
    code, text = _verify(capsys, tmp_path / "run")
    found = re.search(
        r"FOUND: step 1 was taken with learning rate (\S+), the settings give (\S+) and 4 more", text
    )
    assert code == 1 and found, text
    assert float(found[1]) / float(found[2]) == pytest.approx(1.001, rel=1e-6)


def test_what_is_no_run_or_has_no_ledger(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _verify(capsys, tmp_path) == (
        2, f"nextscale: {tmp_path} is neither a run of nextscale nor a model folder\n"
    )  # fmt: skip
    run = tiny_run("prior", home, num_steps=1)
    run = run.model_copy(update={"ledger": run.ledger.model_copy(update={"enabled": False})})
    train_quietly(run, tmp_path / "run")
    code, text = _verify(capsys, tmp_path / "run")
    assert code == 2 and "has no ledger: it was trained without one" in text


@pytest.mark.attack(by="verify", names="the steps, how much slower")
def test_slow_stretches_are_told() -> None:
    steady = [(step, 10.0 + step % 3) for step in range(1, 201)]
    assert slow_stretches(steady) == []
    slow = [(step, ms * (1.4 if 100 < step <= 150 else 1.0)) for step, ms in steady]
    assert slow_stretches(slow) == ["steps 101 to 150 took 1.40 times as long as the steps before them"]
    assert slow_stretches(slow[:120]) == [] == slow_stretches([])


@pytest.mark.attack(by="verify", names="the steps, how much slower")
@pytest.mark.slow
@pytest.mark.parametrize("slowed", [False, True])
def test_a_training_that_is_slowed_down_is_told(
    slowed: bool, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Every step sleeps until a tenth of a second is over, so that the pace does not depend on other work;
    the last 50 take 40 % longer in one run, in its honest twin not.
    """
    take, numbers = train_loop.take_step, itertools.count(1)

    def take_slowly(*words: Any, **more: Any) -> Any:
        end = time.monotonic() + (0.14 if slowed and next(numbers) > 100 else 0.1)
        outcome = take(*words, **more)
        time.sleep(max(0.0, end - time.monotonic()))
        return outcome

    monkeypatch.setattr(train_loop, "take_step", take_slowly)
    quick = {"num_steps": 150, "save_every": 150, "evaluate_every": 150}
    train_quietly(tiny_run("prior", home, **quick), tmp_path / "run")
    code, text = _verify(capsys, tmp_path / "run")
    assert code == 0  # a slow machine is no attack: it is told, and people judge
    told = re.findall(r"note: steps 101 to 150 took (\S+) times as long as the steps before them", text)
    assert len(told) == slowed, text
    assert all(1.3 < float(factor) < 1.5 for factor in told)
