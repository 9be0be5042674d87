"""The one training loop. Run the same command again and it goes on where the last checkpoint stands.

Special here: everything random follows from the step, so the only state of the loop is that number.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from nextscale import checkpoint
from nextscale.data.loader import Batch
from nextscale.train import saving
from nextscale.train.ema import averaged_copy, update_average
from nextscale.train.logs import RunLog, draw_curves
from nextscale.train.optimizer import build_optimizer, set_rates
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
    optimizer = build_optimizer(task.module, optimizer_settings, no_decay=task.no_decay)
    average = averaged_copy(task.module)
    first, complaints = saving.restore(
        folder / "checkpoints", task=task, average=average, optimizer=optimizer
    )
    for complaint in complaints:
        say(f"checkpoint passed over: {complaint}")
    if first:
        say(f"going on after step {first} of {loop.num_steps}")

    def look(step: int, log: RunLog, limit: int | None) -> dict[str, float]:
        scores = task.evaluate(average, limit)
        log.write("evaluate", step, scores)
        picture = task.picture(average)
        if picture is not None:
            (folder / "pictures").mkdir(exist_ok=True)
            Image.fromarray(picture).save(folder / "pictures" / f"step-{step:08d}.png")
        return scores

    scores: dict[str, float] = {}
    with RunLog(folder, first_step=first) as log:
        bar = tqdm(total=loop.num_steps, initial=first, unit="step", disable=not progress, mininterval=1.0)
        totals: dict[str, Tensor] = {}
        last_record, since = time.perf_counter(), first
        for step, batch in enumerate(task.batches(range(first, loop.num_steps)), start=first):
            rate = learning_rate(
                optimizer_settings, step, num_steps=loop.num_steps, batch_size=loop.batch_size
            )
            decay = weight_decay(optimizer_settings, step, num_steps=loop.num_steps)
            set_rates(optimizer, lr=rate, weight_decay=decay)
            numbers = _step(task, batch, optimizer, loop=loop, clip_norm=optimizer_settings.clip_norm)
            task.after_step(step)
            update_average(average, task.module, decay=loop.ema_decay, step=step)
            _add(totals, numbers)
            bar.update()
            done = step + 1
            if done % loop.log_every == 0 or done == loop.num_steps:
                now = time.perf_counter()
                record = _means(totals, done - since)
                record |= {
                    "lr": rate,
                    "images_per_second": (done - since) * loop.batch_size / (now - last_record),
                }
                log.write("train", done, record)
                bar.set_postfix_str(f"loss {record['loss']:.3f}", refresh=False)
                totals, last_record, since = {}, now, done
            if done % loop.save_every == 0 and done < loop.num_steps:
                saving.save(
                    folder / "checkpoints",
                    step=done,
                    task=task,
                    average=average,
                    optimizer=optimizer,
                    keep=loop.keep,
                )
            if done % loop.evaluate_every == 0 and done < loop.num_steps:
                look(done, log, loop.evaluate_images)
                last_record, since, totals = time.perf_counter(), done, {}
        bar.close()
        saving.save(
            folder / "checkpoints",
            step=loop.num_steps,
            task=task,
            average=average,
            optimizer=optimizer,
            keep=loop.keep,
        )
        task.export(average, folder / "model")
        scores = look(loop.num_steps, log, None)
    draw_curves(folder / "log.jsonl", folder / "curves.png")
    return scores


def _step(
    task: Task, batch: Batch, optimizer: torch.optim.Optimizer, *, loop: LoopSettings, clip_norm: float
) -> dict[str, Tensor]:
    """Forward, backward, clip, update. Returns what to log."""
    parameters = list(task.module.parameters())
    device = parameters[0].device.type
    task.module.train()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=loop.precision == "bfloat16"):
        loss, numbers = task.loss(batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimizer.step()
    return {"loss": loss.detach(), "gradient_norm": norm.detach(), **numbers}


def _add(totals: dict[str, Tensor], numbers: dict[str, Tensor]) -> None:
    for name, value in numbers.items():
        totals[name] = totals[name] + value.detach() if name in totals else value.detach().clone()


def _means(totals: dict[str, Tensor], steps: int) -> dict[str, float]:
    """Means over the steps; a vector becomes one number per scale."""
    means: dict[str, float] = {}
    for name, total in totals.items():
        values = (total.float() / steps).tolist()
        if isinstance(values, list):
            means.update({f"{name}_{index}": value for index, value in enumerate(values)})
        else:
            means[name] = values
    return means
