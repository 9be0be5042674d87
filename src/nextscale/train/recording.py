"""What a run writes into its ledger while it trains: every step, every checkpoint, every event.

Letters: B batch.
Special here: batches are hashed and lines written by a thread, beside the step's own work. Of several
processes the first one writes; the others hash what they read, and a checkpoint's record holds one digest per
process of all batches since the last one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from nextscale import checkpoint
from nextscale.data.loader import Batch
from nextscale.distributed import Distributed
from nextscale.integrity import anchors
from nextscale.integrity.approval import Leave
from nextscale.integrity.digests import tensors_digest
from nextscale.integrity.fingerprint import code_files
from nextscale.integrity.found import Found
from nextscale.integrity.ledger import Ledger, exact
from nextscale.integrity.settings import LedgerSettings
from nextscale.integrity.statement import Made, attach
from nextscale.models import find_model
from nextscale.train.inputs import Inputs
from nextscale.train.step import StepResult
from nextscale.train.stopping import Stopped
from nextscale.train.watching import Watching

#: How many steps the thread may be behind.
_MOST_PENDING = 8

#: Records a checkpoint: its folder, before it is renamed into place, and the digests of its tensors.
Seal = Callable[[Path, dict[str, str]], None]


def batch_digest(batch: Batch) -> str:
    """SHA-256 of everything that a step reads."""
    return tensors_digest(
        {name: getattr(batch, name) for name in ("items", "labels_B", "uniforms_BR", "samples_B")}
    )


@dataclass
class Writing:
    """What the process that writes has."""

    ledger: Ledger
    found: Found  #: the folder as it was before
    facts: dict[str, Any]  #: for the record of the start
    inputs: Inputs
    anchor: Path | None  #: file elsewhere that takes heads
    identity: str  #: the hash of the ledger's first record
    leave: Leave | None = None  #: by whose leave; None: nobody was asked
    started: str = ""  #: time of this start


class Recorder:
    """Takes to the ledger what happens.

    Args:
        folder: of the run.
        settings: of ledgers.
        writing: None: this process writes nothing, as it is not the first one, or as ledgers are off.
    """

    def __init__(self, folder: Path, settings: LedgerSettings, *, writing: Writing | None = None) -> None:
        self.folder, self.settings, self.writing = folder, settings, writing
        self.watching: Watching | None = None  #: on every process
        self._code: dict[str, str] | None = None  #: digests of our files, when they were last looked at
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._pending: deque[Future[None]] = deque()
        self._batches = hashlib.sha256()
        self._since = 0.0  #: when the step at hand began

    @property
    def remarks(self) -> list[str]:
        """What people should hear at the start of what is other than last time."""
        if self.writing is None:
            return []
        accepted = [f"accepted: {text}" for text in self.writing.found.differences]
        return accepted + [f"since the last start: {text}" for text in self.writing.inputs.told]

    def batch(self, batch: Batch) -> Future[str] | None:
        """Start to hash a batch, whose step begins."""
        self._since = time.perf_counter()
        return self._thread.submit(batch_digest, batch) if self.settings.enabled else None

    def step(
        self, step: int, digest: Future[str] | None, result: StepResult, optimizer: torch.optim.Optimizer
    ) -> None:
        """Record a step, by its number from 1: loss, gradient norms, and the rates that the optimizer has."""
        if self.watching is not None and step % self.watching.every == 0:
            self.watching.check(step)
        if digest is None:
            return
        numbers: dict[str, Any] = {}
        if self.writing is not None:
            rates = dict.fromkeys(exact(group["lr"]) for group in optimizer.param_groups)
            norms = {name: exact(float(value)) for name, value in result.numbers.items() if "norm" in name}
            numbers = {"loss": exact(float(result.numbers["loss"])), "norms": norms, "lr": list(rates)}
            numbers["ms"] = round(1e3 * (time.perf_counter() - self._since), 1)
        self._submit(self._write_step, step, digest, numbers)

    def weights(self, step: int, module: nn.Module, *, always: bool = False) -> None:
        """Every so often, or ``always``, record a digest of each weight after a step."""
        every = self.settings.weights_every
        if self.writing is None or not (always or (every and step % every == 0)):
            return
        parameters = module.named_parameters()  # now, as the next step changes them
        digests = {name: tensors_digest({name: value})[:32] for name, value in parameters}
        self.event("weights", step=step, tensors=digests)

    def _write_step(self, step: int, digest: Future[str], numbers: dict[str, Any]) -> None:
        self._batches.update(bytes.fromhex(digest.result()))
        if self.writing is not None:
            self.writing.ledger.append("step", step=step, batch=digest.result(), **numbers)

    def event(self, kind: str, **fields: Any) -> None:
        """Record something else, after the steps so far."""
        if self.writing is not None:
            self._submit(partial(self.writing.ledger.append, kind, **fields))

    def end(self, step: int, scores: dict[str, float]) -> None:
        """Record the scores of the finished model."""
        self.event("end", step=step, scores={name: exact(value) for name, value in scores.items()})

    def export(self, name: str, step: int) -> None:
        """State how a finished model in the run's folder was made, and record its files."""
        if self.writing is None:
            return
        self.wait()  # the statement names the ledger's head
        attach(self.folder / name, self._made(self.writing, step))
        files = {
            item.name: checkpoint.digest(item)
            for item in sorted((self.folder / name).iterdir())
            if item.is_file()
        }
        self.event("export", name=name, step=step, files=files)

    def _made(self, writing: Writing, step: int) -> Made:
        inputs, first = writing.inputs, writing.found.history.first_start
        settings = writing.facts["settings"]
        parents = {"tokenizer_sha256": settings.get("tokenizer_from"), "init_sha256": settings.get("init")}
        return Made(
            run=self.folder.resolve().name, step=step, started=first["time"] if first else writing.started,
            facts=writing.facts, code=inputs.fingerprint.lines if inputs.fingerprint else {},
            data=inputs.sets, leave=writing.leave, ledger=writing.identity, head=writing.ledger.head,
            parents={name: find_model(model) for name, model in parents.items() if model},
        )  # fmt: skip

    def seal(self, step: int, ranks: Distributed) -> Seal | None:
        """What records the checkpoint of a step; all processes call it. None where ledgers are off."""
        if not self.settings.enabled:
            return None
        with ranks.together():
            self.wait()
            if self.watching is not None:
                self.watching.check(step)
        batches = ranks.gather(self._batches.hexdigest())
        self._batches = hashlib.sha256()
        return partial(self._write_checkpoint, step, batches)

    def _write_checkpoint(self, step: int, batches: list[str], place: Path, tensors: dict[str, str]) -> None:
        """Record a checkpoint and publish the head; the checkpoint counts only when this is on the disk."""
        if self.writing is None:
            return
        ledger, identity, anchor = self.writing.ledger, self.writing.identity, self.writing.anchor
        self._look_at_code()
        files = json.loads((place / checkpoint.DIGESTS).read_text())
        head = ledger.append("checkpoint", step=step, files=files, tensors=tensors, batches=batches)
        ledger.sync()
        anchors.write_anchor(place, ledger=identity, head=head)
        if anchor is not None:
            anchors.publish(anchor, ledger=identity, head=head, run=self.folder)

    def _look_at_code(self) -> None:
        """Record which of our files were changed on disk since the start: whoever starts anew runs others."""
        assert self.writing is not None
        taken = self.writing.inputs.fingerprint
        if taken is None:
            return
        before = self._code or taken.code
        self._code = code_files()
        for name in sorted(set(before) | set(self._code)):
            if before.get(name) != self._code.get(name):
                self.writing.ledger.append("changed", text=f"code {name} was changed while the run went on")

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> None:
        self._pending.append(self._thread.submit(work, *arguments))
        while len(self._pending) > _MOST_PENDING:
            self._pending.popleft().result()

    def wait(self) -> None:
        """Until everything so far is written. Raises OSError where the disk is full."""
        while self._pending:
            self._pending.popleft().result()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, Stopped):
                self.event("stop", step=error.step, cause=error.cause)
            elif error is not None:
                self.event("failed", error=type(error).__name__, text=str(error)[:1000])
            self.wait()
        except OSError:
            if error is None:  # what ended the run says more than a failed write
                raise
        finally:
            self._thread.shutdown()
            if self.writing is not None:
                self.writing.ledger.close()
