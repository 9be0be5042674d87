"""nextscale: train, sample and evaluate image generators that work by next-scale prediction (VAR, arXiv
2404.02905).

Special here: names are imported when they are first used, so that ``import nextscale`` costs no torch.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextscale.generate.generator import Generator
    from nextscale.generate.result import Preview, Result
    from nextscale.prior.diffusion import DiffusionPrior
    from nextscale.prior.next_scale import NextScalePrior
    from nextscale.prior.next_token import NextTokenPrior
    from nextscale.scales import ScaleSchedule
    from nextscale.tokenizer.model import Tokenizer

try:
    __version__ = version("nextscale")
except PackageNotFoundError:  # a source tree on PYTHONPATH, installed nowhere
    __version__ = "not installed"

__all__ = [
    "DiffusionPrior", "Generator", "NextScalePrior", "NextTokenPrior", "Preview", "Result", "ScaleSchedule",
    "Tokenizer", "__version__",
]  # fmt: skip

_HOMES = {
    "Generator": "generate.generator",
    "Preview": "generate.result",
    "Result": "generate.result",
    "DiffusionPrior": "prior.diffusion",
    "NextScalePrior": "prior.next_scale",
    "NextTokenPrior": "prior.next_token",
    "ScaleSchedule": "scales",
    "Tokenizer": "tokenizer.model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nextscale' has no attribute {name!r}")
    return getattr(importlib.import_module(f"nextscale.{_HOMES[name]}"), name)
