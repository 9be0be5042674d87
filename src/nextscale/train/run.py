"""One function per kind of run: open the data, build the task, claim the folder, train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from nextscale.data.sources import Source, hold_out, open_source
from nextscale.data.token_cache import TokenCache, open_cache
from nextscale.distributed import choose_device
from nextscale.train.classifier_task import ClassifierTask
from nextscale.train.loop import train
from nextscale.train.prior_task import PriorTask
from nextscale.train.run_folder import claimed_folder
from nextscale.train.settings import ClassifierRun, PriorRun, TokenizerRun
from nextscale.train.task import Task
from nextscale.train.tokenizer_task import TokenizerTask


def train_run(
    run: TokenizerRun | PriorRun | ClassifierRun, folder: Path, *, device: str | None = None,
    say: Callable[[str], None], progress: bool = True,
) -> dict[str, float]:  # fmt: skip
    """Train what a run describes, or go on with it; the finished model is in ``folder / "model"``.

    Args:
        run: everything that decides the result.
        folder: of the run; it may hold an earlier part of the same run.
        device: where to train; None takes a GPU when there is one.
        say: takes one line for people.
        progress: show a bar.

    Returns:
        The scores of the finished model on the validation images.

    Raises:
        ValueError: data, tokenizer or folder do not fit; nothing was written then.
    """
    place = choose_device(device)
    source, validation = _open(run)
    torch.manual_seed(run.loop.seed)
    task = _build(run, source, validation, place, folder)
    description = run.model_dump(mode="json")
    if isinstance(task, PriorTask):  # another tokenizer in the same place would make it another run
        description["tokenizer_sha256"] = task.tokenizer_digest
        if task.cache is not None:
            description["tokens_sha256"] = task.cache.sha256
    with claimed_folder(folder, description):
        count = sum(parameter.numel() for parameter in task.module.parameters())
        images = f"{len(source.labels)} images of {len(source.class_names)} classes"
        say(f"{images}, {count:,} parameters, on {place}")
        if isinstance(task, PriorTask):
            task.prepare(progress=progress)
        return train(
            task, folder, loop=run.loop, optimizer_settings=run.optimizer, say=say, progress=progress
        )


def _open(run: TokenizerRun | PriorRun | ClassifierRun) -> tuple[Source | TokenCache, Source]:
    """What to train on, and the validation images. Kept tokens come without images, unless both are there."""
    data, tokens_from = run.data, run.tokens_from if isinstance(run, PriorRun) else ""
    if tokens_from and not data.source and not data.validation:
        raise ValueError(
            "no validation images given: set data.validation, or data.source where its tokens were made with "
            "--validation-share"
        )
    if not data.validation:
        return hold_out(open_source(data.source), data.validation_share)
    source = open_cache(Path(tokens_from).expanduser()) if tokens_from else open_source(data.source)
    validation = open_source(data.validation)
    if validation.class_names != source.class_names:
        raise ValueError(
            f"{data.validation} has other classes ({', '.join(validation.class_names[:3])}...) than "
            f"{tokens_from or data.source} ({', '.join(source.class_names[:3])}...): "
            "both must have the same ones"
        )
    return source, validation


def _build(
    run: TokenizerRun | PriorRun | ClassifierRun,
    source: Source | TokenCache,
    validation: Source,
    device: torch.device,
    folder: Path,
) -> Task:
    if isinstance(run, PriorRun):
        return PriorTask(run, source=source, validation=validation, device=device, folder=folder)
    assert not isinstance(source, TokenCache)
    if isinstance(run, TokenizerRun):
        return TokenizerTask(run, source=source, validation=validation, device=device)
    return ClassifierTask(run, source=source, validation=validation, device=device)
