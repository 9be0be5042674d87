"""The one training loop. Run the same command again and it goes on where the last checkpoint stands.

Special here: everything random follows from the step, so `Progress` is the only state of the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from nextscale.data.loader import Batch
from nextscale.train import saving
from nextscale.train.ema import averaged_copy, update_average
from nextscale.train.logs import Meter, RunLog, draw_curves
from nextscale.train.optimizer import build_optimizer, set_rates
from nextscale.train.progress import Progress
from nextscale.train.schedules import learning_rate, weight_decay
from nextscale.train.settings import LoopSettings, OptimizerSettings
from nextscale.train.step import StepResult, describe_failure, take_step
from nextscale.train.stopping import Stopped, StopRequest, stop_requests
from nextscale.train.task import Task


@dataclass
class _Run:
    """What a run works with, and how far it is."""

    task: Task
    folder: Path
    loop: LoopSettings
    optimizer_settings: OptimizerSettings
    optimizer: torch.optim.Optimizer
    average: nn.Module
    say: Callable[[str], None]
    log: RunLog
    saver: saving.Saver
    stop: StopRequest
    progress: Progress = field(default_factory=Progress)

    def step(self, batch: Batch) -> StepResult:
        """Set the rates, take the step, move the average; a step without finite numbers changes nothing."""
        loop, settings, step = self.loop, self.optimizer_settings, self.progress.step
        rate = learning_rate(settings, step, num_steps=loop.num_steps, batch_size=loop.batch_size)
        decay = weight_decay(settings, step, num_steps=loop.num_steps)
        set_rates(self.optimizer, lr=rate, weight_decay=decay)
        self.task.module.train()
        result = take_step(self.task, batch, self.optimizer, loop=loop, clip_norm=settings.clip_norm)
        self.progress = self.progress.after_step(result.finite)
        if result.finite:
            self.task.after_step(step)
            update_average(self.average, self.task.module, decay=loop.ema_decay, step=step)
        else:
            self._complain(batch, result)
        return StepResult({**result.numbers, "lr": torch.tensor(rate)}, result.finite)

    def _complain(self, batch: Batch, result: StepResult) -> None:
        problem = f"step {self.progress.step}: {describe_failure(self.task, batch, result)}"
        if self.progress.skipped_in_a_row >= self.loop.max_skipped:
            raise ValueError(
                f"{problem}; {self.progress.skipped_in_a_row} steps in a row went wrong: lower "
                "optimizer.base_lr, try loop.precision float32, or look at these samples"
            )
        self.say(f"skipped {problem}")
        self.log.write("event", self.progress.step, {"skipped": self.progress.skipped})

    def save(self) -> None:
        """A checkpoint of this moment."""
        self.saver.save(self.progress, task=self.task, average=self.average, optimizer=self.optimizer)

    def look(self) -> None:
        """Score the averaged weights, make a picture with them, and keep them if they are the best so far."""
        scores = self.stop.unless_asked(lambda: self.score(self.loop.evaluate_images))
        if scores is None:
            return
        name, larger_is_better = self.task.score
        self.progress = self.progress.after_look(scores[name], larger_is_better=larger_is_better)
        if self.progress.best_step == self.progress.step:
            self.task.export(self.average, self.folder / "best")

    def score(self, limit: int | None) -> dict[str, float]:
        """Score and draw the averaged weights, for the log."""
        scores = self.task.evaluate(self.average, limit)
        self.log.write("evaluate", self.progress.step, scores)
        picture = self.task.picture(self.average)
        if picture is not None:
            (self.folder / "pictures").mkdir(exist_ok=True)
            Image.fromarray(picture).save(self.folder / "pictures" / f"step-{self.progress.step:08d}.png")
        return scores

    def over(self) -> bool:
        """Whether the last step is taken, or the scores have not improved for too long."""
        patience = self.loop.patience
        exhausted = patience > 0 and self.progress.looks_since_best >= patience
        return exhausted or self.progress.step >= self.loop.num_steps


def train(
    task: Task, folder: Path, *, loop: LoopSettings, optimizer_settings: OptimizerSettings,
    say: Callable[[str], None], progress: bool = True,
) -> dict[str, float]:  # fmt: skip
    """Train to the last step, with checkpoints, log, pictures and the finished model in ``folder``.

    Args:
        task: what is trained.
        folder: the run's folder, held by `nextscale.train.run_folder.claimed_folder`.
        loop: how long.
        optimizer_settings: how.
        say: takes one line for people.
        progress: show a bar.

    Returns:
        The scores of the finished model.

    Raises:
        Stopped: a signal asked for it; a checkpoint of the last step is written.
        ValueError: too many steps in a row without finite numbers.
        OSError: a checkpoint could not be written.
    """
    optimizer = build_optimizer(task.module, optimizer_settings, no_decay=task.no_decay)
    average = averaged_copy(task.module)
    first, complaints = saving.restore(
        folder / "checkpoints", task=task, average=average, optimizer=optimizer
    )
    for complaint in complaints:
        say(f"checkpoint passed over: {complaint}")
    if first.step:
        say(f"going on after step {first.step} of {loop.num_steps}")
    with (
        stop_requests() as stop,
        RunLog(folder, first_step=first.step) as log,
        saving.Saver(folder / "checkpoints", keep=loop.keep) as saver,
    ):
        run = _Run(
            task, folder, loop, optimizer_settings, optimizer, average, say, log, saver, stop, first
        )  # fmt: skip
        _all_steps(run, show=progress)
        run.save()
        saver.wait()
        if stop.cause:
            raise Stopped(run.progress.step, stop.cause)
        task.export(average, folder / "model")
        scores = stop.unless_asked(lambda: run.score(None))
        if scores is None:
            raise Stopped(run.progress.step, stop.cause)
    draw_curves(folder / "log.jsonl", folder / "curves.png")
    _tell_end(run)
    return scores


def _all_steps(run: _Run, *, show: bool) -> None:
    """Train on to the end or until somebody asks to stop, and every so often log, save and look."""
    loop, first = run.loop, run.progress.step
    if first and first % loop.evaluate_every == 0 and not run.over():
        run.look()  # a checkpoint is written before its look
    if run.over() or run.stop.cause:
        return
    meter = Meter(loop.batch_size)
    with tqdm(total=loop.num_steps, initial=first, unit="step", disable=not show, mininterval=1) as bar:
        for done, batch in enumerate(run.task.batches(range(first, loop.num_steps)), start=first + 1):
            result = run.step(batch)
            if result.finite:
                meter.add(result.numbers)
            bar.update()
            if meter.steps and (done % loop.log_every == 0 or done == loop.num_steps):
                record = meter.record()
                run.log.write("train", done, record)
                bar.set_postfix_str(f"loss {record['loss']:.3f}", refresh=False)
            if done < loop.num_steps and not run.stop.cause:
                if done % loop.save_every == 0:
                    run.save()
                if done % loop.evaluate_every == 0:
                    run.look()
                    meter.restart()
            if run.over() or run.stop.cause:
                return


def _tell_end(run: _Run) -> None:
    """What is worth knowing about the way there."""
    progress = run.progress
    if progress.step < run.loop.num_steps:
        run.say(
            f"stopped after step {progress.step}: {progress.looks_since_best} evaluations without a better "
            f"{run.task.score[0]}"
        )
    if progress.best_score is not None:
        run.say(
            f"best {run.task.score[0]} on schedule: {progress.best_score:.4g} after step "
            f"{progress.best_step}, kept in {run.folder / 'best'}"
        )
    if progress.skipped:
        run.say(f"{progress.skipped} steps were skipped: loss or gradient was not finite")
