"""The installed packages that a process uses, held against what their installation recorded.

Special here: in use is whatever this process has a file of in memory, Python or native, when it is called. A
package's RECORD names the SHA-256 of each of its files; who changes a file may change RECORD as well, so the
digest of RECORD itself is part of the answer. Files are read anew every time: sizes and times of change can
be put back by whoever changes a file.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from nextscale import checkpoint

_THREADS = 8


@dataclass(frozen=True)
class Package:
    """An installed package."""

    name: str
    version: str
    record: str  #: SHA-256 of its RECORD; empty: it has none, so its files cannot be checked
    files: dict[str, str]  #: path -> SHA-256 in hexadecimal, as RECORD says; empty where it says nothing


def installed() -> list[Package]:
    """All packages on `sys.path`, files as absolute paths; of two with one name, that which is imported."""
    found: dict[str, Package] = {}
    for item in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", item.metadata["Name"] or "").lower()
        text, root = item.read_text("RECORD"), os.path.realpath(str(item.locate_file("")))
        digest = hashlib.sha256(text.encode()).hexdigest() if text else ""
        if name not in found:
            found[name] = Package(name, item.version, digest, dict(_rows(text or "", root)))
    return list(found.values())


def _rows(record: str, root: str) -> Iterator[tuple[str, str]]:
    for row in csv.reader(record.splitlines()):
        kind, _, text = row[1].partition("=") if len(row) > 1 else ("", "", "")
        if kind == "sha256":
            text = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).hex()
        yield os.path.normpath(os.path.join(root, row[0])), text if kind == "sha256" else ""


def loaded_files() -> set[str]:
    """What this process has in memory: sources of modules, native libraries; real paths."""
    # asked for an attribute, some modules would import others
    names = {getattr(module, "__dict__", {}).get("__file__") for module in list(sys.modules.values())}
    maps = Path("/proc/self/maps")
    if maps.exists():
        rows = [line.split(None, 5) for line in maps.read_text().splitlines() if "/" in line]
        names |= {row[5] for row in rows if "x" in row[1]}  # the others are data
    return {
        os.path.realpath(name)
        for name in names
        if isinstance(name, str) and os.path.isabs(name) and os.path.isfile(name)
    }


def in_use(packages: list[Package], loaded: set[str]) -> tuple[list[Package], list[str]]:
    """The packages that have files in memory, and the files in memory that belong to none."""
    owner = {path: package for package in packages for path in package.files}
    used = {owner[path].name: owner[path] for path in loaded if path in owner}
    return sorted(used.values(), key=lambda package: package.name), sorted(loaded - set(owner))


def changed_files(packages: list[Package]) -> list[str]:
    """Files that are missing or not what RECORD says, in words. Programs and caches do not count."""
    wanted = [
        (package.name, path, digest)
        for package in packages
        for path, digest in package.files.items()
        if digest and "/bin/" not in path and "__pycache__" not in path
    ]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        found = threads.map(_digest, (path for _, path, _ in wanted))
        return [
            f"{path} of {name} {f'is not what was installed: {given}' if given else 'is missing'}"
            for (name, path, digest), given in zip(wanted, found, strict=True)
            if given != digest
        ]


def _digest(path: str) -> str:
    """SHA-256 of a file; empty where there is none."""
    try:
        return checkpoint.digest(Path(path))
    except OSError:
        return ""
