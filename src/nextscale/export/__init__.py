"""A model as programs that run without its Python code. Importing this costs no torch; its functions do."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextscale.export.folder import export_model
    from nextscale.export.loaded import ExportedGenerator, load

__all__ = ["ExportedGenerator", "export_model", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "folder" if name == "export_model" else "loaded"
    return getattr(import_module(f"{__name__}.{home}"), name)
