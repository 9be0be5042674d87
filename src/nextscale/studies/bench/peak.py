"""The peak of the resident memory of a process of its own that does one thing once, on a CPU.

Special here: a CPU process cannot say what one call took, since memory that was freed stays with it. So a
fresh process imports everything, looks at what it holds, loads a model folder, does the work, and looks at
the most it ever held. ``python -m nextscale.studies.bench.peak`` reads what to do as JSON and writes bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from nextscale.studies.bench.clock import resident_bytes


def peak_of_generation(folder: Path, *, batch: int, dtype: str) -> int:
    """Bytes above those after the imports: weights and everything else.

    Args:
        folder: of a model.
        batch: images at a time.
        dtype: of the products.

    Raises:
        ValueError: the process failed; with its last line.
    """
    asked = {"folder": str(folder), "batch": batch, "dtype": dtype, "threads": torch.get_num_threads()}
    result = subprocess.run(
        [sys.executable, "-m", "nextscale.studies.bench.peak"], input=json.dumps(asked), text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    if result.returncode:
        last = (result.stderr.strip() or f"exit code {result.returncode}").splitlines()[-1]
        raise ValueError(f"measuring the memory failed ({last}): give a smaller --batch or size")
    return int(result.stdout)


def _work() -> None:
    from nextscale.studies.bench.default import load_default

    asked = json.load(sys.stdin)
    torch.set_num_threads(asked["threads"])
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # what the first product of a process sets up
    before = resident_bytes()
    generate = load_default(Path(asked["folder"]), dtype=asked["dtype"])
    generate(asked["batch"])
    sys.stdout.write(str(resident_bytes(most=True) - before))


if __name__ == "__main__":
    _work()
