"""Damaged token caches are refused, by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models_for_tests import SCHEDULE, loud_tokenizer
from nextscale.data.token_cache import TokenCache, open_cache
from nextscale.tokenizer.model import Tokenizer
from token_caches_for_tests import make_in


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return loud_tokenizer(SCHEDULE)


def _damage(cache: TokenCache, name: str, kind: str) -> None:
    path, content = cache.folder / name, bytearray((cache.folder / name).read_bytes())
    if kind == "gone":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[:-1])
    elif kind == "head":
        path.write_bytes(b"\0" * len(content))
    else:
        content[-1 if kind == "bit" else content.index(b"descr") + 10] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["tokens.npy", "labels.npy"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [("gone", "is missing or was cut"), ("cut", "is missing or was cut"), ("head", "is no array: remove")],
)
def test_a_damaged_cache_is_not_opened(
    name: str, kind: str, message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    _damage(make_in(tmp_path, tokenizer), name, kind)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        open_cache(tmp_path)


@pytest.mark.parametrize("name", ["tokens.npy", "labels.npy"])
def test_a_changed_bit_is_found_by_the_full_check(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    cache = make_in(tmp_path, tokenizer)
    _damage(cache, name, "bit")
    open_cache(tmp_path)
    for call in (cache.check, lambda: make_in(tmp_path, tokenizer)):
        with pytest.raises(ValueError, match=f"{name} was changed or damaged: its SHA-256 is not"):
            call()


def test_an_array_of_another_shape(tokenizer: Tokenizer, tmp_path: Path) -> None:
    cache = make_in(tmp_path, tokenizer)
    head = (tmp_path / "tokens.npy").read_bytes()
    assert head.count(b"(3, 7, 30)") == 1
    (tmp_path / "tokens.npy").write_bytes(head.replace(b"(3, 7, 30)", b"(7, 3, 30)"))
    with pytest.raises(ValueError, match=r"holds uint16 \(7, 3, 30\), not uint16 \(3, 7, 30\)"):
        open_cache(cache.folder)
