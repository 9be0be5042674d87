"""The one training loop. Run the same command again and it goes on where the last checkpoint stands.

Special here: everything random follows from the step, so the only state of the loop is that number.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from nextscale import checkpoint
from nextscale.data.loader import Batch
from nextscale.train import saving
from nextscale.train.ema import averaged_copy, update_average
from nextscale.train.logs import Meter, RunLog, draw_curves
from nextscale.train.optimizer import build_optimizer, clip_gradients, set_rates
from nextscale.train.schedules import learning_rate, weight_decay
from nextscale.train.settings import LoopSettings, OptimizerSettings
from nextscale.train.task import Task


def claim_folder(folder: Path, description: dict[str, Any]) -> None:
    """Make a run's folder, or check that it belongs to this very run.

    Raises:
        ValueError: the folder holds something else, or a run with other settings.
    """
    record = folder / "run.json"
    if not folder.exists() or not any(folder.iterdir()):
        checkpoint.write_json(record, description)
        return
    if not record.exists():
        raise ValueError(f"{folder} exists and is no run of nextscale: give another --out")
    for name, value in _flat(json.loads(record.read_text())).items():
        wanted = _flat(description).get(name)
        if wanted != value:
            raise ValueError(
                f"{folder} holds a run with {name} = {value}, not {wanted}: give the same settings to go on, "
                "or another --out to start anew"
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, lists compared as text."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = json.dumps(value)
    return flat


@dataclass(frozen=True)
class _Run:
    """What stays the same from the first step to the last."""

    task: Task
    folder: Path
    loop: LoopSettings
    optimizer_settings: OptimizerSettings
    optimizer: torch.optim.Optimizer
    average: nn.Module
    say: Callable[[str], None]

    def step(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """Forward, backward, clip, update. Returns what to log."""
        loop, settings = self.loop, self.optimizer_settings
        rate = learning_rate(settings, step, num_steps=loop.num_steps, batch_size=loop.batch_size)
        decay = weight_decay(settings, step, num_steps=loop.num_steps)
        set_rates(self.optimizer, lr=rate, weight_decay=decay)
        self.task.module.train()
        device = next(self.task.module.parameters()).device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=loop.precision == "bfloat16"):
            loss, numbers = self.task.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms = clip_gradients(self.task.module, settings.clip_norm, self.task.parameter_groups)
        self.optimizer.step()
        self.task.after_step(step)
        update_average(self.average, self.task.averaged, decay=loop.ema_decay, step=step)
        return {"loss": loss.detach(), **norms, "lr": torch.tensor(rate), **numbers}

    def save(self, step: int) -> None:
        """A checkpoint after ``step`` steps."""
        saving.save(
            self.folder / "checkpoints", step=step, task=self.task, average=self.average,
            optimizer=self.optimizer, keep=self.loop.keep,
        )  # fmt: skip

    def look(self, step: int, log: RunLog, limit: int | None) -> dict[str, float]:
        """Score the averaged weights and make a picture with them."""
        scores = self.task.evaluate(self.average, limit)
        log.write("evaluate", step, scores)
        for alarm in self.task.alarms(scores):
            self.say(f"step {step}: {alarm}")
        picture = self.task.picture(self.average)
        if picture is not None:
            (self.folder / "pictures").mkdir(exist_ok=True)
            Image.fromarray(picture).save(self.folder / "pictures" / f"step-{step:08d}.png")
        return scores


def train(
    task: Task, folder: Path, *, loop: LoopSettings, optimizer_settings: OptimizerSettings,
    say: Callable[[str], None], progress: bool = True,
) -> dict[str, float]:  # fmt: skip
    """Train to the last step, with checkpoints, log, pictures and the finished model in ``folder``.

    Args:
        task: what is trained.
        folder: the run's folder, claimed by `claim_folder`.
        loop: how long.
        optimizer_settings: how.
        say: takes one line for people.
        progress: show a bar.

    Returns:
        The scores of the finished model.
    """
    optimizer = build_optimizer(
        task.module, optimizer_settings, no_decay=task.no_decay, groups=task.parameter_groups
    )
    run = _Run(task, folder, loop, optimizer_settings, optimizer, averaged_copy(task.averaged), say)
    first, complaints = saving.restore(
        folder / "checkpoints", task=task, average=run.average, optimizer=optimizer
    )
    for complaint in complaints:
        say(f"checkpoint passed over: {complaint}")
    if first:
        say(f"going on after step {first} of {loop.num_steps}")
    with RunLog(folder, first_step=first) as log:
        _all_steps(run, log, first, progress=progress)
        run.save(loop.num_steps)
        task.export(run.average, folder / "model")
        scores = run.look(loop.num_steps, log, None)
    draw_curves(folder / "log.jsonl", folder / "curves.png")
    return scores


def _all_steps(run: _Run, log: RunLog, first: int, *, progress: bool) -> None:
    """Train from step ``first``, and every so often log, save and look."""
    loop = run.loop
    if first < loop.num_steps and first and first % loop.evaluate_every == 0:
        run.look(first, log, loop.evaluate_images)  # a checkpoint is written before its look
    meter = Meter(loop.batch_size)
    with tqdm(total=loop.num_steps, initial=first, unit="step", disable=not progress, mininterval=1) as bar:
        for done, batch in enumerate(run.task.batches(range(first, loop.num_steps)), start=first + 1):
            meter.add(run.step(done - 1, batch))
            bar.update()
            if done % loop.log_every == 0 or done == loop.num_steps:
                record = meter.record()
                log.write("train", done, record)
                bar.set_postfix_str(f"loss {record['loss']:.3f}", refresh=False)
            if done < loop.num_steps and done % loop.save_every == 0:
                run.save(done)
            if done < loop.num_steps and done % loop.evaluate_every == 0:
                run.look(done, log, loop.evaluate_images)
                meter.restart()
