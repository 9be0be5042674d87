"""The loop's promises: parts of a batch, steps without finite numbers, requests to stop, the best weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from images import MemorySource
from models_for_tests import make_loud, model_settings, random_generator
from nextscale.checkpoint import read_tensors
from nextscale.train.decoder_task import DecoderTask
from nextscale.train.logs import read_log
from nextscale.train.prior_task import PriorTask
from nextscale.train.progress import Progress
from nextscale.train.settings import DecoderRun, LoopSettings, PriorRun, TokenizerRun
from nextscale.train.step import add_gradients, split_batch
from nextscale.train.stopping import Stopped
from nextscale.train.task import Task
from nextscale.train.tokenizer_task import TokenizerTask
from runs_for_tests import STEPS, largest_difference, make_home, tiny_run, train_quietly

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("loop"))


# parts of a batch


def _task(kind: str, home: Path, tmp_path: Path, **changes: Any) -> Task:
    torch.manual_seed(0)
    loop = {"batch_size": 8, "precision": "float32"}
    sources = {"source": MemorySource(16), "validation": MemorySource(3)}
    if kind == "tokenizer":
        settings = model_settings()
        run = TokenizerRun(schedule=settings.schedule, tokenizer=settings.tokenizer, loop=loop)
        return TokenizerTask(run, device=CPU, **sources)
    if kind == "decoder":
        names = sources["source"].class_names
        random_generator(model_settings().model_copy(update={"class_names": names})).save(tmp_path / "model")
        decoder = DecoderRun(init=str(tmp_path / "model"), loop=loop)
        return DecoderTask(decoder, device=CPU, **sources)
    prior = {"depth": 2, "model_dim": 16, "num_heads": 2, "drop_path": 0.3, "class_dropout": 0.3}
    prior_run = PriorRun(tokenizer_from=str(home / "given"), prior=prior, loop=loop, **changes)
    task = PriorTask(prior_run, device=CPU, folder=tmp_path, **sources)
    make_loud(task.module)
    return task


def _gradients(task: Task, accumulate: int) -> dict[str, Tensor]:
    batch = next(iter(task.batches(range(1))))
    loop = LoopSettings(batch_size=8, accumulate=accumulate, precision="float32")
    numbers = add_gradients(task, batch, loop)
    gradients = {name: value.grad for name, value in task.module.named_parameters() if value.grad is not None}
    return {"loss": numbers["loss"], **gradients}


@pytest.mark.parametrize("kind", ["tokenizer", "prior", "decoder"])
@pytest.mark.parametrize("parts", [2, 8])
def test_parts_of_a_batch_add_up_to_its_gradient(kind: str, parts: int, home: Path, tmp_path: Path) -> None:
    whole = _gradients(_task(kind, home, tmp_path), 1)
    assert largest_difference(whole, _gradients(_task(kind, home, tmp_path), parts)) < 1e-5


def test_parts_add_up_in_float64_too(home: Path, tmp_path: Path) -> None:
    def double() -> Task:
        task = _task("prior", home, tmp_path)
        task.module.double()
        return task

    whole = _gradients(double(), 1)
    assert whole["loss"].dtype == torch.float64
    difference = largest_difference(whole, _gradients(double(), 4))
    assert 0 < difference < 1e-9


def test_a_batch_is_cut_in_order(home: Path, tmp_path: Path) -> None:
    batch = next(iter(_task("prior", home, tmp_path).batches(range(1))))
    parts = split_batch(batch, 4)
    for name in ("items", "labels_B", "uniforms_BR", "samples_B"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


def test_a_batch_that_cannot_be_cut_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 6 cannot be cut into accumulate 4 equal parts"):
        LoopSettings(batch_size=6, accumulate=4)


def test_computing_again_changes_no_gradient(home: Path, tmp_path: Path) -> None:
    plain = _gradients(_task("prior", home, tmp_path), 1)
    again = _gradients(_task("prior", home, tmp_path, recompute=True), 1)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_computing_again_keeps_less(home: Path, tmp_path: Path) -> None:
    def kept(**changes: Any) -> int:
        task, sizes = _task("prior", home, tmp_path, **changes), []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            task.loss(next(iter(task.batches(range(1)))))
        return sum(sizes)

    assert kept(recompute=True) < 0.5 * kept()


def test_scales_can_weigh_more_or_nothing(home: Path, tmp_path: Path) -> None:
    def loss(*weights: float) -> tuple[float, Tensor]:
        task = _task("prior", home, tmp_path, scale_weights=weights)
        value, numbers = task.loss(next(iter(task.batches(range(1)))))
        return float(value.detach()), numbers["scale_loss"]

    plain, per_scale = loss()
    assert loss(1, 1, 1, 1)[0] == plain
    assert loss(0, 0, 1, 0)[0] == pytest.approx(float(per_scale[2]), rel=1e-6)
    expected = (per_scale[0] * 2 + per_scale[1] * 4) / 6  # 2 x 1 token, 1 x 4 tokens
    assert loss(2, 1, 0, 0)[0] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0, 1.0, -1.0), (0.0, 0.0, 0.0, 0.0)])
def test_weights_that_fit_no_scales(weights: tuple[float, ...], home: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 4 numbers, one per scale"):
        _task("prior", home, tmp_path, scale_weights=weights)


# numbers that are none


def _spoil(monkeypatch: pytest.MonkeyPatch, batches: set[int]) -> None:
    """Let the loss of these batches be no number."""
    loss, count = PriorTask.loss, iter(range(1000))

    def spoiled(self: PriorTask, batch: Any) -> Any:
        value, numbers = loss(self, batch)
        return (value * float("nan") if next(count) in batches else value), numbers

    monkeypatch.setattr(PriorTask, "loss", spoiled)


def test_a_step_without_finite_numbers_changes_nothing_and_is_counted(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run("prior", home, save_every=1, keep=12)
    _spoil(monkeypatch, {4, 7})
    _, said = train_quietly(run, tmp_path / "run")
    assert any(line.startswith("skipped step 5: loss nan, not finite: ") for line in said)
    assert "2 steps were skipped: loss or gradient was not finite" in said
    saved = [tmp_path / "run" / "checkpoints" / f"step-{step:08d}" for step in (4, 5, 6)]
    for name in ("module", "average", "optimizer"):
        before, spoiled, after = (read_tensors(place / f"{name}.safetensors") for place in saved)
        assert all(torch.equal(before[key], spoiled[key]) for key in before), name
        assert not all(torch.equal(before[key], after[key]) for key in before), name
    state = json.loads((saved[1] / "state.json").read_text())
    assert (state["step"], state["skipped"], state["skipped_in_a_row"]) == (5, 1, 1)
    events = [record for record in read_log(tmp_path / "run" / "log.jsonl") if record["kind"] == "event"]
    assert [(record["step"], record["skipped"]) for record in events] == [(5, 1), (8, 2)]


def test_too_many_of_them_in_a_row_end_the_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run("prior", home, max_skipped=3)
    with monkeypatch.context() as patch:
        _spoil(patch, {1, 5, 6, 7})
        with pytest.raises(ValueError, match=r"step 8: loss nan.*samples \d+.*3 steps in a row.*base_lr"):
            train_quietly(run, tmp_path / "run")
    assert "going on after step 4 of 12" in train_quietly(run, tmp_path / "run")[1]


# requests to stop


def _request(monkeypatch: pytest.MonkeyPatch, method: str, number: int) -> None:
    """Send SIGTERM during the given call of a method of the task."""
    original, count = getattr(PriorTask, method), iter(range(1000))

    def requested(self: PriorTask, *arguments: Any, **named: Any) -> Any:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments, **named)

    monkeypatch.setattr(PriorTask, method, requested)


def _weights(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder / "checkpoints" / f"step-{STEPS:08d}" / "module.safetensors")


@pytest.mark.parametrize(
    ("method", "number", "step"),
    [("loss", 4, 5), ("after_step", 6, 7), ("evaluate", 0, 6), ("picture", 0, 6), ("evaluate", 1, 12)],
)
def test_sigterm_saves_and_the_same_run_goes_on(
    method: str, number: int, step: int, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run("prior", home)
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        _request(patch, method, number)
        with pytest.raises(Stopped, match=f"stopped by SIGTERM after step {step}; run the same"):
            train_quietly(run, tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) is before
    scores, said = train_quietly(run, tmp_path / "run")
    assert f"going on after step {step} of 12" in said
    expected, _ = train_quietly(run, tmp_path / "expected")
    assert scores == expected
    mine, theirs = _weights(tmp_path / "run"), _weights(tmp_path / "expected")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    steps = [(r["kind"], r["step"]) for r in read_log(tmp_path / "run" / "log.jsonl") if r["kind"] != "train"]
    assert steps == [("evaluate", 6), ("evaluate", 12)]


def test_the_command_exits_with_a_code_of_its_own(home: Path, tmp_path: Path) -> None:
    run = tiny_run("prior", home, num_steps=1_000_000).model_dump(mode="json", exclude_none=True)
    code = (
        "import json, sys; from pathlib import Path; from nextscale.cli import main, train;"
        "from nextscale.config import build; from nextscale.train.settings import PriorRun;"
        f"tree = json.loads(Path({str(tmp_path / 'run.json')!r}).read_text());"
        "train.read_recipe = lambda *_: tree;"
        f"sys.exit(main(['train', 'prior', 'any', '--out', {str(tmp_path / 'out')!r}, '--device', 'cpu']))"
    )
    (tmp_path / "run.json").write_text(json.dumps(run))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    checkpoints = tmp_path / "out" / "checkpoints"
    while process.poll() is None and not list(checkpoints.glob("step-*")):
        pass
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 75 and error.startswith("nextscale: stopped by SIGTERM after step "), error


# the best weights


def test_training_ends_when_nothing_gets_better(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([5.0, 4.0, float("nan"), 4.5, 4.0, 0.0])
    monkeypatch.setattr(PriorTask, "evaluate", lambda *_: {"loss": next(scores)})
    run = tiny_run("prior", home, evaluate_every=1, patience=3)
    _, said = train_quietly(run, tmp_path / "run")
    assert "stopped after step 5: 3 evaluations without a better loss" in said
    best = tmp_path / "run" / "best"
    assert f"best loss on schedule: 4 after step 2, kept in {best}" in said
    assert (best / "prior.safetensors").exists()
    last, kept = (read_tensors(place / "prior.safetensors") for place in (tmp_path / "run" / "model", best))
    assert any(not torch.equal(last[name], kept[name]) for name in last)


def test_larger_or_smaller_may_be_better() -> None:
    start = Progress(step=1)
    assert start.after_look(float("nan"), larger_is_better=True).best_score is None
    first = start.after_look(2.0, larger_is_better=True)
    assert first.after_look(3.0, larger_is_better=True).best_score == 3.0
    assert first.after_look(1.0, larger_is_better=True).looks_since_best == 1
    assert first.after_look(1.0, larger_is_better=False).best_score == 1.0
    assert first.after_look(2.0, larger_is_better=False).looks_since_best == 1
