"""What a run works with, besides its settings: code, packages, machine, images. Read before the first step.

Special here: it is looked at in one go, and training waits. A check beside the first steps would have to hold
checkpoints back until it ends, and importing torch takes as long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from nextscale.data.sources import BadImageError, Source
from nextscale.distributed import Distributed
from nextscale.integrity import merkle
from nextscale.integrity.fingerprint import Fingerprint, changes, take_fingerprint
from nextscale.integrity.history import History
from nextscale.integrity.settings import LedgerSettings


@dataclass(frozen=True)
class Inputs:
    """What there is, and how it differs from the last time."""

    fingerprint: Fingerprint | None  #: None: nobody looked
    leaves: dict[str, list[bytes]]  #: one per image, by set; empty: nobody looked
    refused: tuple[str, ...]  #: differences that end the start unless they are accepted
    told: tuple[str, ...]  #: differences that are recorded

    @property
    def sets(self) -> dict[str, dict[str, object]]:
        """Root and number of each set of images, as ledgers and approvals hold them."""
        return {name: {"root": merkle.root(item), "count": len(item)} for name, item in self.leaves.items()}


def look_at_inputs(
    history: History, settings: LedgerSettings, *, folder: Path, images: Mapping[str, Source],
    ranks: Distributed,
) -> Inputs:  # fmt: skip
    """Read everything anew and hold it against the ledger.

    Args:
        history: the ledger so far.
        settings: what to look at.
        folder: of the run.
        images: sets of images by name.
        ranks: the processes that train together.
    """
    refused: list[str] = []
    told: list[str] = []
    taken = take_fingerprint(_devices(ranks)) if settings.fingerprint else None
    if taken is not None:
        refused += [text for text in taken.wrong if text not in history.wrong]
        if history.fingerprint is not None:
            more, told = changes(history.fingerprint, taken.lines)
            refused += more
    leaves = {name: _leaves(source) for name, source in images.items()} if settings.data else {}
    for name, found in leaves.items():
        if name in history.data:
            refused += _data_changes(history, name, found, source=images[name], folder=folder)
    return Inputs(taken, leaves, tuple(refused), tuple(told))


def _leaves(source: Source) -> list[bytes]:
    """A hash of each image with its label; one that cannot be read counts as its error."""
    found = []
    for index, label in enumerate(source.labels.tolist()):
        try:
            content = source.read(index)
        except (BadImageError, OSError) as error:
            content = str(error).encode()
        found.append(merkle.leaf(content, label))
    return found


def leaves_file(folder: Path, name: str, root: str) -> Path:
    """Where the hashes of a set of images are kept."""
    return folder / "data" / f"{name}-{root[:12]}.leaves"


def _data_changes(
    history: History, name: str, found: list[bytes], *, source: Source, folder: Path
) -> list[str]:
    """Which images are others than the last time."""
    root = history.data[name]["root"]
    if merkle.root(found) == root:
        return []
    try:
        before = merkle.read_leaves(leaves_file(folder, name, root), expected=root)
    except ValueError as error:
        return [f"{name} images were changed, and {error}"]
    return [f"{name} images: {text}" for text in merkle.differences(before, found, source.name)]


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
