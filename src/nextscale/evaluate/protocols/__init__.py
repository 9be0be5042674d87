"""Protocols as data: one TOML file each, `nextscale.evaluate.settings.Protocol` says what is in it."""

from __future__ import annotations

from pathlib import Path

_HOME = Path(__file__).parent


def protocol_names() -> list[str]:
    """Names of the protocols that come with the package."""
    return sorted(path.stem for path in _HOME.glob("*.toml"))


def protocol_file(name: str) -> Path:
    """The file of a protocol, by its name or the path of a TOML file; it need not exist."""
    return Path(name) if name.endswith(".toml") else _HOME / f"{name}.toml"
