"""One function per kind of run: open the data, build the task, claim the folder, train."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nextscale.data.loader import readable_part
from nextscale.data.skipped import FILE as SKIPPED_FILE
from nextscale.data.skipped import SkippedImages
from nextscale.data.sources import Source, hold_out, open_source
from nextscale.data.token_cache import TokenCache, open_cache
from nextscale.distributed import Distributed, SharedError, choose_device
from nextscale.integrity.approval import Plan
from nextscale.integrity.history import History
from nextscale.prior.settings import DiffusionSettings
from nextscale.train.approving import plan_of
from nextscale.train.classifier_task import ClassifierTask
from nextscale.train.decoder_task import DecoderTask
from nextscale.train.diffusion_task import DiffusionTask
from nextscale.train.estimate import Estimate, estimate
from nextscale.train.inputs import look_at_inputs
from nextscale.train.loop import train
from nextscale.train.prior_base import PriorBase
from nextscale.train.prior_task import PriorTask
from nextscale.train.record_start import facts_of, open_recorder
from nextscale.train.recording import Recorder
from nextscale.train.run_folder import claimed_by_first, first_difference
from nextscale.train.settings import AnyRun, ClassifierRun, DecoderRun, PriorRun, TokenizerRun
from nextscale.train.sharding import check_torch, weights_to_cut
from nextscale.train.task import Task
from nextscale.train.tokenizer_task import TokenizerTask

_MOST_NAMES = 20


def train_run(
    run: AnyRun, folder: Path, *, device: str | None = None,
    say: Callable[[str], None], progress: bool = True, ranks: Distributed | None = None,
) -> dict[str, float]:  # fmt: skip
    """Train what a run describes, or go on with it; the finished model is in ``folder / "model"``.

    Args:
        run: everything that decides the result.
        folder: of the run; it may hold an earlier part of the same run.
        device: where to train; None takes a GPU when there is one.
        say: takes one line for people.
        progress: show a bar.
        ranks: the processes that train together (`nextscale.distributed.joined`); None: this one alone, on
            ``device``. Only the first one speaks and writes.

    Returns:
        The scores of the finished model on the validation images.

    Raises:
        ValueError: data, tokenizer, folder or the number of processes do not fit; nothing was written then.
    """
    ranks = ranks or Distributed(0, 1, choose_device(device))
    if not ranks.is_first:
        say, progress = _say_nothing, False
    skipped = SkippedImages() if run.data.on_bad_image == "skip" else None
    with ranks.together():
        _check_processes(run, ranks)
        task, images = _task_of(run, folder, device=ranks.device, skipped=skipped, progress=progress)
    description = _describe(run, task)
    _check_same(description | {"images": images, "loop.sharding": run.loop.sharding}, ranks)
    with claimed_by_first(folder, description, ranks):
        if skipped is not None and ranks.is_first:
            skipped.keep_in(folder)
        parameters = list(task.module.parameters())
        count = sum(parameter.numel() for parameter in parameters)
        say(f"{images}, {count:,} parameters, on {parameters[0].device}{_processes(run, task, ranks)}")
        if not (folder / "checkpoints").exists():
            for line in task.start_lines:
                say(line)
        if isinstance(task, PriorBase):
            task.prepare(progress=progress, ranks=ranks)
        with ranks.together():
            recorder = _open_recorder(run, folder, task, description=description, ranks=ranks)
        for line in recorder.remarks:
            say(line)
        with recorder:
            scores = train(
                task, folder, loop=run.loop, optimizer_settings=run.optimizer, say=say, progress=progress,
                ranks=ranks, recorder=recorder,
            )  # fmt: skip
        if skipped is not None and skipped.names:
            _report(skipped.names, folder, say)
        return scores


def _open_recorder(
    run: AnyRun, folder: Path, task: Task, *, description: dict[str, Any], ranks: Distributed
) -> Recorder:
    """The ledger of a run, after looking at all that it works with."""
    facts = facts_of(run.model_dump(mode="json", exclude={"ledger"}), description, ranks)
    return open_recorder(folder, run.ledger, facts=facts, images=_images(task), ranks=ranks)


def _describe(run: AnyRun, task: Task) -> dict[str, Any]:
    """What must stay when a run goes on: its settings, and digests of what it starts from."""
    description = settings_that_decide(run)
    if isinstance(task, PriorBase):  # another tokenizer in the same place would make it another run
        description["tokenizer_sha256"] = task.tokenizer_digest
    if isinstance(task, PriorTask) and task.cache is not None:
        description["tokens_sha256"] = task.cache.sha256
    if isinstance(task, TokenizerTask | DecoderTask):
        description |= task.digests
    if isinstance(task, PriorBase | TokenizerTask | DecoderTask) and task.init_digest:
        description["init_sha256"] = task.init_digest
    return description


def plan_run(run: AnyRun, name: str, *, device: str | None = None) -> Plan:
    """What a run is about to train, with which code, on which images: to be approved. Writes nothing.

    Args:
        run: everything that decides the result.
        name: of the folder that it is going to have.
        device: where it is going to train.

    Raises:
        ValueError: data or tokenizer do not fit.
    """
    ranks = Distributed(0, 1, choose_device(device))
    skipped = SkippedImages() if run.data.on_bad_image == "skip" else None
    task, _ = _task_of(run, Path(name), device=ranks.device, skipped=skipped, progress=False)
    facts = facts_of(run.model_dump(mode="json", exclude={"ledger"}), _describe(run, task), ranks)
    inputs = look_at_inputs(History(), run.ledger, folder=Path(name), images=_images(task), ranks=ranks)
    return plan_of(name, facts, inputs)


def _images(task: Task) -> dict[str, Source]:
    """The sets of images of a run; kept tokens have none."""
    sets = {"training": task.source, "validation": task.validation}
    return {name: source for name, source in sets.items() if not isinstance(source, TokenCache)}


def settings_that_decide(run: AnyRun) -> dict[str, Any]:
    """The settings of a run that must stay when it goes on, as its `run.json` holds them."""
    description = run.model_dump(mode="json")
    del description["data"]["on_bad_image"]  # a run that a bad image stopped may go on and skip it
    del description["loop"]["sharding"]  # a run may go on sharded or not, as its processes are
    del description["loop"]["stop_after"]  # it goes on then
    del description["ledger"]  # nothing of it changes what is trained
    description.pop("compile", None)  # nor does this change more than rounding
    return description


def _say_nothing(_line: str) -> None:
    pass


def _check_processes(run: AnyRun, ranks: Distributed) -> None:
    """Raise ValueError when a run cannot be shared by so many processes."""
    ranks.part(run.loop.batch_size, accumulate=run.loop.accumulate)
    if isinstance(run, ClassifierRun) and ranks.world_size > 1:
        raise ValueError(
            "the classifier trains in one process: its batch norm looks at whole batches, so several "
            "processes would train another network; start it without torchrun"
        )
    if run.loop.sharding == "full" and ranks.world_size > 1:
        check_torch()
        if isinstance(run, DecoderRun):
            raise ValueError(
                "loop.sharding full has not been made to work with train decoder, which also encodes, in "
                "float32: leave it out, a tokenizer is small"
            )
        for name in ("weights_every", "audit_every"):
            if getattr(run.ledger, name):
                raise ValueError(
                    f"ledger.{name} {getattr(run.ledger, name)} with loop.sharding full: no process "
                    "has whole weights to digest; leave it out, checkpoints have their digests"
                )


def _processes(run: AnyRun, task: Task, ranks: Distributed) -> str:
    """How many there are, and how much they share out, in words."""
    if ranks.world_size == 1:
        return ""
    if run.loop.sharding == "replicated":
        return f", {ranks.world_size} processes"
    count = sum(parameter.numel() for parameter in task.module.parameters())
    cut = sum(parameter.numel() for parameter in weights_to_cut(task.averaged))
    return f", {ranks.world_size} processes with slices of {100 * cut / count:.1f} % of them"


def _check_same(description: dict[str, Any], ranks: Distributed) -> None:
    """Raise SharedError unless all processes train the same."""
    given = [json.loads(text) for text in ranks.gather(json.dumps(description))]
    for rank, other in enumerate(given):
        difference = first_difference(given[0], other)
        if difference:
            raise SharedError(
                f"the processes train different runs: rank 0 has {difference} as rank {rank}: start all of "
                "them with the same command and the same data"
            )


def estimate_run(run: AnyRun, *, device: str | None = None) -> Estimate:
    """What a run will take (`nextscale.train.estimate.estimate`); writes nothing, so tokens are not kept.

    Raises:
        ValueError: data or tokenizer do not fit.
    """
    if isinstance(run, PriorRun) and run.cache_views:
        run = run.model_copy(update={"cache_views": 0})
    skipped = SkippedImages() if run.data.on_bad_image == "skip" else None
    task, _ = _task_of(run, Path(), device=choose_device(device), skipped=skipped, progress=False)
    return estimate(task, loop=run.loop, optimizer_settings=run.optimizer)


def _task_of(
    run: AnyRun, folder: Path, *, device: torch.device,
    skipped: SkippedImages | None, progress: bool,
) -> tuple[Task, str]:  # fmt: skip
    """Open the data, then build the task with weights that the seed decides; and say what the data are."""
    source, validation = _open(run)
    if skipped is not None and isinstance(run, PriorRun) and run.cache_views:  # tokens for each image
        assert not isinstance(source, TokenCache), "settings refuse both"
        with tqdm(total=len(source.labels), unit="image", desc="reading", disable=not progress) as bar:
            source = readable_part(source, skipped, on_image=bar.update)
    torch.manual_seed(run.loop.seed)
    images = f"{len(source.labels)} images of {len(source.class_names)} classes"
    return _build(run, source, validation, device=device, folder=folder, skipped=skipped), images


def _report(names: Sequence[str], folder: Path, say: Callable[[str], None]) -> None:
    """Say which images were skipped; a long list is in the folder."""
    say(f"bad images that were skipped: {len(names)}, listed in {folder / SKIPPED_FILE}")
    for name in names[:_MOST_NAMES]:
        say(f"  {name}")
    if len(names) > _MOST_NAMES:
        say(f"  and {len(names) - _MOST_NAMES} more")


def _open(run: AnyRun) -> tuple[Source | TokenCache, Source]:
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
    run: AnyRun,
    source: Source | TokenCache,
    validation: Source,
    *,
    device: torch.device,
    folder: Path,
    skipped: SkippedImages | None,
) -> Task:
    if isinstance(run, PriorRun):
        family = DiffusionTask if isinstance(run.prior, DiffusionSettings) else PriorTask
        return family(
            run, source=source, validation=validation, device=device, folder=folder, skipped=skipped
        )
    assert not isinstance(source, TokenCache)
    if isinstance(run, TokenizerRun):
        return TokenizerTask(run, source=source, validation=validation, device=device, skipped=skipped)
    if isinstance(run, DecoderRun):
        return DecoderTask(run, source=source, validation=validation, device=device, skipped=skipped)
    return ClassifierTask(run, source=source, validation=validation, device=device, skipped=skipped)
