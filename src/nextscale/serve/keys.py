"""API keys: who may ask, and how often.

Special here: the file holds names and hashes alone. A key is 32 random bytes, so that a plain hash is enough;
all hashes are compared, each in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")


def new_key(name: str) -> tuple[str, str]:
    """A key, and the line of the file that lets it in.

    Raises:
        ValueError: a name with other than letters, digits, dots, dashes and underscores.
    """
    key = "ns-" + secrets.token_urlsafe(32)
    line = f"{name}:{_hash(key)}"
    if not _LINE.fullmatch(line):
        raise ValueError(f"key name {name!r}: expected up to 64 letters, digits, dots, dashes or underscores")
    return key, line


def read_keys(file: Path) -> dict[str, str]:
    """The hash of every name.

    Raises:
        ValueError: no such file, a line that is none, a name twice, or no key at all.
    """
    if not file.is_file():
        raise ValueError(
            f"no file of keys {str(file)!r}: make one with nextscale serve --new-key NAME >> FILE"
        )
    keys: dict[str, str] = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        found = _LINE.fullmatch(text)
        if not found:
            raise ValueError(f"{file}, line {number}: expected NAME:SHA256 in hexadecimal digits")
        if found[1] in keys:
            raise ValueError(f"{file}, line {number}: a second key of the name {found[1]!r}")
        keys[found[1]] = found[2]
    if not keys:
        raise ValueError(f"{file} holds no key: make one with nextscale serve --new-key NAME >> FILE")
    return keys


def name_of(key: str, keys: Mapping[str, str]) -> str | None:
    """Whose key this is; None: nobody's. Takes as long whatever is given."""
    given, found = _hash(key), None
    for name, expected in keys.items():
        if hmac.compare_digest(given, expected):
            found = name
    return found


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Rates:
    """A bucket per name that fills evenly: at most ``per_minute`` requests a minute, and as many at once."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str, now: float) -> float:
        """Seconds until ``name`` may ask again; 0 when it may now, which is then counted."""
        if not self._per_minute:
            return 0.0
        tokens, then = self._buckets.get(name, (float(self._per_minute), now))
        tokens = min(self._per_minute, tokens + (now - then) * self._per_minute / 60)
        if tokens < 1:
            return (1 - tokens) * 60 / self._per_minute
        self._buckets[name] = (tokens - 1, now)
        return 0.0
