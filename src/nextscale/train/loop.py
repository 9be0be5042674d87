"""The one training loop. Run the same command again and it goes on where the last checkpoint stands.

Special here: everything random follows from the step, so `Progress` is the only state of the loop. Several
processes run it side by side and take every branch together: what decides is equal on all of them. The first
one alone writes and speaks, but slices of a sharded model are written by those that hold them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from nextscale.data.ahead import made_ahead
from nextscale.data.loader import Batch
from nextscale.distributed import Distributed
from nextscale.train import saving
from nextscale.train.auditing import Auditor
from nextscale.train.ema import averaged_copy, update_average
from nextscale.train.logs import Meter, RunLog, draw_curves
from nextscale.train.optimizer import build_optimizer, set_rates
from nextscale.train.progress import Progress
from nextscale.train.record_start import record_start, watch_memory
from nextscale.train.recording import Recorder
from nextscale.train.schedules import learning_rate, weight_decay
from nextscale.train.settings import LoopSettings, OptimizerSettings
from nextscale.train.sharding import assembled, shard_run_, words_apart
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
    ranks: Distributed
    recorder: Recorder
    auditor: Auditor
    outline: nn.Module | None  #: the averaged module without values, where that is sharded
    progress: Progress = field(default_factory=Progress)

    def step(self, batch: Batch) -> StepResult:
        """Set the rates, take the step, move the average; a step without finite numbers changes nothing."""
        loop, settings, step = self.loop, self.optimizer_settings, self.progress.step
        rate = learning_rate(settings, step, num_steps=loop.num_steps, batch_size=loop.batch_size)
        decay = weight_decay(settings, step, num_steps=loop.num_steps)
        set_rates(self.optimizer, lr=rate, weight_decay=decay)
        self.task.module.train()
        self.auditor.before(self.progress, task=self.task, average=self.average, optimizer=self.optimizer)
        digest = self.recorder.batch(batch)
        result = take_step(
            self.task, batch, self.optimizer, loop=loop, clip_norm=settings.clip_norm, ranks=self.ranks,
            stop=self.stop,
        )  # fmt: skip
        self.progress = self.progress.after_step(result.finite)
        self.recorder.step(self.progress.step, digest, result, self.optimizer)
        if result.finite:
            self.task.after_step(step)
            audited = self.auditor.audits(self.progress.step)
            self.recorder.weights(self.progress.step, self.task.module, always=audited)
            update_average(self.average, self.task.averaged, decay=loop.ema_decay, step=step)
        else:
            with self.ranks.together():
                self._complain(batch, result)
        self.auditor.after(self.progress.step)
        return replace(result, numbers={**result.numbers, "lr": torch.tensor(rate)})

    def _complain(self, batch: Batch, result: StepResult) -> None:
        failure = describe_failure(self.task, batch, result)
        if self.ranks.world_size > 1:  # the samples of a rank whose own loss is spoiled say most
            spoiled = "" if bool(torch.isfinite(result.own_loss)) else failure
            failure = next(filter(None, self.ranks.gather(spoiled)), failure)
        problem = f"step {self.progress.step}: {failure}"
        if self.progress.skipped_in_a_row >= self.loop.max_skipped:
            raise ValueError(
                f"{problem}; {self.progress.skipped_in_a_row} steps in a row went wrong: lower "
                "optimizer.base_lr, try loop.precision float32, or look at these samples"
            )
        self.say(f"skipped {problem}")
        self.recorder.event("skip", step=self.progress.step, problem=problem)
        self.log.write("event", self.progress.step, {"skipped": self.progress.skipped})

    def save(self) -> None:
        """A checkpoint of this moment, and the bad images up to here."""
        self.auditor.wait()
        seal = self.recorder.seal(self.progress.step, self.ranks)
        with self.ranks.together():
            if self.ranks.is_first or self.outline is not None:
                self.saver.save(
                    self.progress, task=self.task, average=self.average, optimizer=self.optimizer, seal=seal
                )
        self._share_skipped()

    def _share_skipped(self) -> None:
        """Have the first rank note which bad images the others met."""
        if self.task.skipped is not None and self.ranks.world_size > 1:
            self.task.skipped.share(self.ranks)

    def finish_saving(self) -> None:
        """Wait for the last checkpoint, on all ranks: whoever ends early has torchrun end the others."""
        with self.ranks.together():
            self.saver.wait()

    def look(self) -> None:
        """Score the averaged weights, make a picture with them, and keep them if they are the best so far."""
        scores = self.stop.unless_asked(lambda: self.score(self.loop.evaluate_images))
        if scores is None:
            return
        name, larger_is_better = self.task.score
        self.progress = self.progress.after_look(scores[name], larger_is_better=larger_is_better)
        if self.progress.best_step == self.progress.step:
            self.export("best")
        if self.ranks.world_size > 1:
            votes = self.stop.votes()
            self.ranks.sum_([votes])
            self.stop.settle(votes)

    def export(self, name: str) -> None:
        """Write the averaged weights as a model of their own into the run's folder."""
        with self.ranks.together():
            average = self.average
            if self.outline is not None:
                average = assembled(self.outline, average, self.ranks)
            if self.ranks.is_first:
                self.task.export(average, self.folder / name)
                self.recorder.export(name, self.progress.step)

    def score(self, limit: int | None) -> dict[str, float]:
        """Score and draw the averaged weights, for the log. The first rank's scores count."""
        with self.ranks.together():
            scores = self.task.evaluate(self.average, limit, self.ranks)
            picture = self.task.picture(self.average)
        scores = self.ranks.of_first(scores)
        self._share_skipped()
        with self.ranks.together():
            if self.ranks.is_first:
                self._show(scores, picture)
        return scores

    def _show(self, scores: dict[str, float], picture: numpy.ndarray | None) -> None:
        self.log.write("evaluate", self.progress.step, scores)
        for alarm in self.task.alarms(scores):
            self.log.alarm(self.progress.step, alarm)
            self.say(f"step {self.progress.step}: {alarm}")
        if picture is not None:
            (self.folder / "pictures").mkdir(exist_ok=True)
            Image.fromarray(picture).save(self.folder / "pictures" / f"step-{self.progress.step:08d}.png")

    @property
    def paused(self) -> bool:
        """Whether it shall end here for today."""
        return 0 < self.loop.stop_after <= self.progress.step < self.loop.num_steps

    def over(self) -> bool:
        """Whether the last step is taken, also that of today, or scores have not improved for too long."""
        patience = self.loop.patience
        exhausted = patience > 0 and self.progress.looks_since_best >= patience
        return exhausted or self.paused or self.progress.step >= self.loop.num_steps


def train(
    task: Task, folder: Path, *, loop: LoopSettings, optimizer_settings: OptimizerSettings,
    say: Callable[[str], None], progress: bool = True, ranks: Distributed, recorder: Recorder,
) -> dict[str, float]:  # fmt: skip
    """Train to the last step, with checkpoints, log, pictures and the finished model in ``folder``.

    Args:
        task: what is trained.
        folder: the run's folder, held by `nextscale.train.run_folder.claimed_folder`.
        loop: how long.
        optimizer_settings: how.
        say: takes one line for people.
        progress: show a bar.
        ranks: the processes that train together.
        recorder: takes what happens to the ledger.

    Returns:
        The scores of the finished model.

    Raises:
        Stopped: a signal asked for it; a checkpoint of the last step is written.
        ValueError: too many steps in a row without finite numbers.
        OSError: a checkpoint could not be written.
    """
    ranks.take_first_([*task.module.state_dict().values(), *task.state().values()])
    average = averaged_copy(task.averaged)
    empty = shard_run_(task.averaged, average, loop, ranks)
    optimizer = build_optimizer(
        task.module, optimizer_settings, no_decay=task.no_decay, groups=task.parameter_groups
    )
    first = _restore(task, average, optimizer, folder=folder, say=say, recorder=recorder, ranks=ranks)
    writers = Distributed(0, 1, ranks.device) if empty is None else words_apart(ranks)
    if first.step:
        say(f"going on after step {first.step} of {loop.num_steps}")
    with (
        stop_requests(alone=ranks.world_size == 1) as stop,
        RunLog(folder, first_step=first.step, silent=not ranks.is_first) as log,
        saving.Saver(folder / "checkpoints", keep=loop.keep, ranks=writers) as saver,
        Auditor(folder, ranks=ranks, recorder=recorder, say=say) as auditor,
    ):
        run = _Run(
            task, folder, loop, optimizer_settings, optimizer, average, say, log, saver, stop, ranks,
            recorder, auditor, empty, first,
        )  # fmt: skip
        _all_steps(run, show=progress)
        run.save()
        run.finish_saving()
        if stop.cause or run.paused:
            raise Stopped(run.progress.step, stop.cause or f"loop.stop_after {loop.stop_after}")
        run.export("model")
        scores = stop.unless_asked(lambda: run.score(None))
        if scores is None:
            raise Stopped(run.progress.step, stop.cause)
        recorder.end(run.progress.step, scores)
    if ranks.is_first:
        draw_curves(folder / "log.jsonl", folder / "curves.png")
    for line in run.progress.in_words(loop.num_steps, score=task.score[0], best=folder / "best"):
        say(line)
    return scores


def _restore(
    task: Task, average: nn.Module, optimizer: torch.optim.Optimizer, *, folder: Path,
    say: Callable[[str], None], recorder: Recorder, ranks: Distributed,
) -> Progress:  # fmt: skip
    """Go on with the newest whole checkpoint, or start, and record which."""
    with ranks.together():
        first, complaints = saving.restore(
            folder / "checkpoints", task=task, average=average, optimizer=optimizer, ranks=ranks
        )
        record_start(recorder, step=first.step, passed_over=complaints)
        watch_memory(recorder, task.module, optimizer)
    for complaint in complaints:
        say(f"checkpoint passed over: {complaint}")
    return first


def _all_steps(run: _Run, *, show: bool) -> None:
    """Train on to the end or until somebody asks to stop, and every so often log, save and look."""
    loop, first = run.loop, run.progress.step
    if first and first % loop.evaluate_every == 0 and not run.over():
        run.look()  # a checkpoint is written before its look
    if run.over() or run.stop.cause:
        return
    meter = Meter(loop.batch_size)
    batches = run.task.batches(range(first, loop.num_steps), part=run.ranks.part(loop.batch_size))
    if run.ranks.device.type == "cuda":
        batches = made_ahead(batches)
    with (
        closing(run.ranks.each(batches)) as each,  # an error must not leave worker processes behind
        tqdm(total=loop.num_steps, initial=first, unit="step", disable=not show, mininterval=1) as bar,
    ):
        for done, batch in enumerate(each, start=first + 1):
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
