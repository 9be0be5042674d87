"""The fingerprint of a run: which code, packages, interpreter, environment and machine it runs with.

Special here: it is a flat table of names and texts, so that two of them are compared line by line and a
difference has the name of a file. It is taken before the first step, by reading every file anew.
What it does not see: the operating system below, and files that a package loads only later on.
"""

from __future__ import annotations

import os
import platform
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nextscale import checkpoint
from nextscale.integrity.memory import replaced_functions
from nextscale.integrity.packages import changed_files, in_use, installed, loaded_files
from nextscale.integrity.startup import bad_caches, environment, interpreter, loads_code, startup_files

_HOME = Path(__file__).resolve().parents[1]
#: Kinds of lines that may change between starts: that is told, and not refused.
_MOVABLE = ("hardware", "numeric")
#: Kinds of lines that may come and go, since it depends on a process's past what it has loaded.
_FLEETING = ("file", "package")


@dataclass(frozen=True)
class Fingerprint:
    """What a process runs with."""

    lines: dict[str, str]  #: ``kind:name`` -> what it is
    wrong: tuple[str, ...]  #: what contradicts itself, whatever it was before

    @property
    def code(self) -> dict[str, str]:
        """The lines of our own files, as `code_files` gives them."""
        return {
            name.removeprefix("code:"): digest
            for name, digest in self.lines.items()
            if name.startswith("code:")
        }


def take_fingerprint(hardware: dict[str, str]) -> Fingerprint:
    """Look at this process and all files that it uses.

    Args:
        hardware: what the caller knows of the devices.
    """
    packages = installed()
    used, others = in_use(packages, loaded_files())
    lines = {f"code:{name}": digest for name, digest in code_files().items()}
    lines |= {f"package:{item.name}": f"{item.version} {item.record or 'without RECORD'}" for item in used}
    lines |= {f"startup:{path}": digest for path, digest in startup_files(packages).items()}
    home, library = str(_HOME), sysconfig.get_path("stdlib")
    lines |= {
        f"{'stray' if 'site-packages' in path else 'file'}:{path}": checkpoint.digest(Path(path))
        for path in others
        if not path.startswith((f"{home}/", f"{library}/")) or "site-packages" in path
    }
    lines |= {f"interpreter:{name}": text for name, text in interpreter().items()}
    for name, value in environment().items():
        lines[f"{'variable' if loads_code(name) else 'numeric'}:{name}"] = value
    lines |= {f"hardware:{name}": text for name, text in {**machine(), **hardware}.items()}
    return Fingerprint(lines, (*changed_files(used), *bad_caches(), *replaced_functions()))


def code_files() -> dict[str, str]:
    """SHA-256 of every file of nextscale, by its path in the package."""
    return {
        str(file.relative_to(_HOME)): checkpoint.digest(file)
        for file in sorted(_HOME.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }


def machine() -> dict[str, str]:
    """The processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    name = models[0].partition(":")[2].strip() if models else platform.processor()
    return {"processor": name, "cores": str(os.cpu_count()), "system": platform.platform()}


def changes(before: dict[str, str], after: dict[str, str]) -> tuple[list[str], list[str]]:
    """How the second table differs from the first, in words: what is to be refused, what is only told."""
    refused: list[str] = []
    told: list[str] = []
    for name in sorted(set(before) | set(after)):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        kind, _, what = name.partition(":")
        text = f"{kind} {what} is new" if old is None else f"{kind} {what} is gone" if new is None else ""
        if not text:
            text = f"{kind} {what} was changed" if _is_digest(old) else f"{kind} {what} was {old}, is {new}"
        movable = kind in _MOVABLE or (kind in _FLEETING and None in (old, new))
        (told if movable else refused).append(text)
    return refused, told


def _is_digest(text: str | None) -> bool:
    return text is not None and len(text) == 64 and set(text) <= set("0123456789abcdef")


def first_few(texts: Sequence[str], count: int = 3) -> str:
    """The first of many, and how many more there are."""
    more = f" and {len(texts) - count} more" if len(texts) > count else ""
    return "; ".join(texts[:count]) + more
