"""Small token caches of images in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from images import MemorySource
from nextscale.data.settings import DataSettings
from nextscale.data.token_cache import MadeFrom, TokenCache, describe
from nextscale.data.tokenizing import make_cache
from nextscale.tokenizer.model import Tokenizer

SOURCE = MemorySource(7)
DATA = DataSettings(source="memory", enlarge=1.25, flip=True)
DIGEST = "0" * 64


def made_from_memory(tokenizer: Tokenizer, data: DataSettings = DATA, **changes: Any) -> MadeFrom:
    """What a cache of seven images in memory is made from."""
    given: dict[str, Any] = {"held_out": None, "tokenizer_sha256": DIGEST, "views": 3, "seed": 5, **changes}
    return describe(SOURCE, data, tokenizer=tokenizer, **given)


def make_in(folder: Path, tokenizer: Tokenizer, *, batch_size: int = 2, **changes: Any) -> TokenCache:
    """Make it."""
    return make_cache(
        folder, source=SOURCE, tokenizer=tokenizer, made_from=made_from_memory(tokenizer, **changes),
        batch_size=batch_size, num_workers=0, progress=False,
    )  # fmt: skip
