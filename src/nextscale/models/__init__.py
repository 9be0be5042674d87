"""The models that come with the package, by name."""

from __future__ import annotations

import difflib
from pathlib import Path

_HOME = Path(__file__).parent


def bundled_models() -> tuple[str, ...]:
    """Names of the bundled models."""
    return tuple(sorted(item.parent.name for item in _HOME.glob("*/config.json")))


def find_model(model: str | Path) -> Path:
    """The folder of a bundled model or of a path.

    Raises:
        ValueError: neither exists.
    """
    place = Path(model).expanduser()
    if place.is_dir():
        return place
    names = bundled_models()
    if str(model) in names:
        return _HOME / str(model)
    near = difflib.get_close_matches(str(model), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"no model {str(model)!r}: expected a model folder or one of {', '.join(names) or 'none'}{hint}"
    )
