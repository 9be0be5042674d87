"""The bad images that a run has met, each once, kept in the run's folder so that going on forgets none."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from threading import Lock

from nextscale import checkpoint
from nextscale.distributed import Distributed

FILE = "skipped_images.txt"


class SkippedImages:
    """Names of images that could not be read, in alphabetical order."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.file: Path | None = None
        self._lock = Lock()  # batches may be made by a thread

    def keep_in(self, folder: Path) -> None:
        """Write the names into a folder from now on, together with those that lie there already."""
        self.file = folder / FILE
        earlier = self.file.read_text().splitlines() if self.file.exists() else []
        mine, self.names = self.names, earlier
        self.add(mine)

    def share(self, ranks: Distributed) -> None:
        """Note what any of the processes that train together has met."""
        for names in ranks.gather(json.dumps(self.names)):
            self.add(json.loads(names))

    def add(self, names: Iterable[str]) -> None:
        """Note bad images; the file is written when there is a new one."""
        with self._lock:
            found = {*self.names, *names}
            if len(found) > len(self.names):
                self.names = sorted(found)
                if self.file is not None:
                    checkpoint.write_file(self.file, "".join(f"{name}\n" for name in self.names))
