"""The published VAR checkpoints to ours and back. Importing this package costs no torch; its functions do."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextscale.convert.files import convert_files, read_released_file
    from nextscale.convert.layout import from_released, to_released

__all__ = ["convert_files", "from_released", "read_released_file", "to_released"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "files" if name.endswith(("_files", "_file")) else "layout"
    return getattr(import_module(f"{__name__}.{home}"), name)
