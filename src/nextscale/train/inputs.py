"""What a run works with, besides its settings: code, packages, machine. Read before the first step.

Special here: it is looked at in one go, and training waits. A check beside the first steps would have to hold
checkpoints back until it ends, and importing torch takes longer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nextscale.distributed import Distributed
from nextscale.integrity.fingerprint import Fingerprint, changes, take_fingerprint
from nextscale.integrity.history import History


@dataclass(frozen=True)
class Inputs:
    """What there is, and how it differs from the last time."""

    fingerprint: Fingerprint
    refused: tuple[str, ...]  #: differences that end the start unless they are accepted
    told: tuple[str, ...]  #: differences that are recorded


def look_at_inputs(history: History, ranks: Distributed) -> Inputs:
    """Read everything anew and hold it against the ledger."""
    taken = take_fingerprint(_devices(ranks))
    before = history.fingerprint
    refused, told = ([], []) if before is None else changes(before, taken.lines)
    wrong = [text for text in taken.wrong if text not in history.wrong]
    return Inputs(taken, (*wrong, *refused), tuple(told))


def _devices(ranks: Distributed) -> dict[str, str]:
    """The devices, and what computes on them."""
    found = {"device": ranks.device.type, "threads": str(torch.get_num_threads())}
    if ranks.device.type == "cuda":
        found |= {
            "device": torch.cuda.get_device_name(ranks.device),
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
        }
    return found
