"""The log of a run: one JSON line per record, the same numbers for TensorBoard, and the curves as a PNG at
the end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from torch import Tensor

from nextscale import checkpoint


class Meter:
    """Means of what the steps report, and how fast they go."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Forget what was added, and start the clock anew."""
        self.totals: dict[str, Tensor] = {}
        self.steps, self.since = 0, time.perf_counter()

    def add(self, numbers: Mapping[str, Tensor]) -> None:
        """Add one step's scalars or vectors; nothing is read from the device."""
        self.steps += 1
        for name, value in numbers.items():
            value = value.detach().float()
            self.totals[name] = self.totals[name] + value if name in self.totals else value

    def record(self) -> dict[str, float]:
        """The means since the last record, a vector as one number per scale, and images per second."""
        means: dict[str, float] = {}
        for name, total in self.totals.items():
            values = (total / self.steps).tolist()
            if isinstance(values, list):
                means.update({f"{name}_{index}": value for index, value in enumerate(values)})
            else:
                means[name] = values
        means["images_per_second"] = self.steps * self.batch_size / (time.perf_counter() - self.since)
        self.restart()
        return means


class RunLog:
    """Appends to ``log.jsonl`` and writes TensorBoard's files where that package is installed.

    Of several processes all but the first are silent: they write nothing.
    """

    def __init__(self, folder: Path, *, first_step: int, silent: bool = False) -> None:
        self.path = folder / "log.jsonl"
        self.file: IO[str] | None = None
        self.writer: Any = None
        if silent:
            return
        self._forget_from(first_step)
        self.file = self.path.open("a")
        self.writer = _tensorboard(folder / "tensorboard", first_step)

    def write(self, kind: str, step: int, numbers: dict[str, float]) -> None:
        """One record: ``kind`` is train, evaluate or event."""
        if self.file is None:
            return
        rounded = {name: float(f"{value:.6g}") for name, value in numbers.items()}
        self._append({"kind": kind, "step": step, **rounded})
        if self.writer is not None:
            for name, value in numbers.items():
                self.writer.add_scalar(f"{kind}/{name}", value, step)

    def alarm(self, step: int, text: str) -> None:
        """One record of kind alarm: what an evaluation warned of."""
        if self.file is None:
            return
        self._append({"kind": "alarm", "step": step, "text": text})
        if self.writer is not None:
            self.writer.add_text("alarm", text, step)

    def _append(self, record: dict[str, Any]) -> None:
        assert self.file is not None
        self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.file.flush()

    def _forget_from(self, step: int) -> None:
        """Drop records of what a resumed run is about to repeat: later steps, and the look at this one."""
        if self.path.exists():
            records = [record for record in read_log(self.path) if record["step"] <= step]
            repeated = {("evaluate", step), ("alarm", step)}
            kept = [record for record in records if (record["kind"], record["step"]) not in repeated]
            checkpoint.write_file(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.file.close()
        if self.writer is not None:
            self.writer.close()


def _tensorboard(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # extra `train` is not installed; the JSON lines hold the same numbers
        return None
    return SummaryWriter(str(folder), purge_step=first_step)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line that a crash cut short is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def draw_curves(log: Path, picture: Path) -> None:
    """One small plot per logged number, training and validation together.

    Needs matplotlib (extra ``eval``).
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    series: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for record in read_log(log):
        for name, value in record.items():
            if name not in ("kind", "step") and isinstance(value, (int, float)):
                series.setdefault(name, {}).setdefault(record["kind"], []).append((record["step"], value))
    names = [name for name, kinds in series.items() if max(len(points) for points in kinds.values()) > 1]
    if not names:
        return
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes.flat, names, strict=False):
        for kind, points in series[name].items():
            axis.plot(
                *zip(*points, strict=True),
                label=kind,
                linewidth=1,
                marker="." if kind == "evaluate" else None,
            )
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    figure.savefig(picture, dpi=90)
    plt.close(figure)
