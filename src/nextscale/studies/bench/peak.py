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
from typing import Any

import torch

from nextscale.studies.bench.clock import resident_bytes


def peak_of(action: str, **asked: Any) -> int:
    """Bytes above those after the imports: weights and everything else.

    Args:
        action: generate, train or tokenize.
        asked: ``folder`` of a model, ``batch``, ``dtype``; train: ``sized`` as JSON.

    Raises:
        ValueError: the process failed; with its last line.
    """
    asked |= {"action": action, "threads": torch.get_num_threads()}
    result = subprocess.run(
        [sys.executable, "-m", "nextscale.studies.bench.peak"], input=json.dumps(asked), text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    if result.returncode:
        last = (result.stderr.strip() or f"exit code {result.returncode}").splitlines()[-1]
        raise ValueError(f"measuring the memory failed ({last}): give a smaller --batch or size")
    return int(result.stdout)


def _work() -> None:
    """What the process does."""
    from nextscale.studies.bench import default, settings, tokenize, train

    asked = json.load(sys.stdin)
    torch.set_num_threads(asked["threads"])
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # what the first product of a process sets up
    folder, batch, dtype, before = Path(asked["folder"]), asked["batch"], asked["dtype"], resident_bytes()
    if asked["action"] == "generate":
        default.generate_once(folder, batch=batch, dtype=dtype)
    elif asked["action"] == "tokenize":
        tokenize.encode_once(folder, batch=batch, dtype=dtype)
    else:
        sized = settings.Sized.model_validate_json(asked["sized"])
        train.DefaultStep(sized, folder, batch=batch, dtype=dtype, device=torch.device("cpu"))()
    sys.stdout.write(str(resident_bytes(most=True) - before))


if __name__ == "__main__":
    _work()
