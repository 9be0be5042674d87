"""Token caches: what is in them, a kill at any moment, other folders and settings, damage."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from models_for_tests import SCHEDULE, loud_tokenizer
from nextscale.data import tokenizing
from nextscale.data.loader import token_batches, training_batches
from nextscale.data.settings import DataSettings
from nextscale.data.token_cache import TokenCache, open_cache
from nextscale.data.tokenizing import make_cache
from nextscale.tokenizer.model import Tokenizer
from token_caches_for_tests import DATA, DIGEST, SOURCE, made_from_memory, make_in


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return loud_tokenizer(SCHEDULE)


@pytest.fixture(scope="module")
def whole(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    return make_in(tmp_path_factory.mktemp("cache") / "tokens", tokenizer)


def _contents(folder: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in folder.iterdir()}


# what is in one


@pytest.mark.parametrize(
    ("data", "views"),
    [
        (DATA, 3), (DataSettings(enlarge=1.0, flip=True), 2), (DataSettings(enlarge=1.5), 2),
        (DataSettings(enlarge=1.0), 1),
    ],
    ids=str,
)  # fmt: skip
def test_views_are_what_training_on_the_fly_sees_in_its_first_epochs(
    data: DataSettings, views: int, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    made_from = made_from_memory(tokenizer, data, views=views)
    cache = make_cache(
        tmp_path / "new" / "tokens", source=SOURCE, tokenizer=tokenizer, made_from=made_from, batch_size=4,
        num_workers=0, progress=False,
    )  # fmt: skip
    num_steps = len(SOURCE.labels) * views // 5
    order: dict[str, Any] = {"batch_size": 5, "seed": 5, "steps": range(num_steps)}
    fresh = training_batches(SOURCE, data, size=tokenizer.image_size, **order)
    kept = token_batches(cache.tokens_VNL, cache.labels, **order)
    for mine, given in zip(kept, fresh, strict=True):
        assert torch.equal(mine.items, tokenizer.encode(given.items))
        assert torch.equal(mine.labels_B, given.labels_B) and torch.equal(mine.uniforms_BR, given.uniforms_BR)
        assert torch.equal(mine.samples_B, given.samples_B)
    assert len(numpy.unique(cache.tokens_VNL.reshape(views, -1), axis=0)) == views


def test_the_folder_of_a_cache(whole: TokenCache, tokenizer: Tokenizer) -> None:
    assert sorted(_contents(whole.folder)) == [".lock", "cache.json", "labels.npy", "tokens.npy"]
    assert isinstance(whole.tokens_VNL, numpy.memmap) and not whole.tokens_VNL.flags.writeable
    assert whole.tokens_VNL.shape == (3, 7, 30) and whole.tokens_VNL.dtype == numpy.uint16
    assert whole.labels.tolist() == SOURCE.labels.tolist() and whole.class_names == SOURCE.class_names
    record = json.loads((whole.folder / "cache.json").read_text())
    assert record["made_from"] == made_from_memory(tokenizer).model_dump(mode="json")
    assert record["made_from"]["seed"] == 5
    assert record["files"]["tokens.npy"]["sha256"] == whole.sha256
    whole.check()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, "<u2"), (2**16 + 1, "<i4")])
def test_a_token_takes_two_bytes_where_it_can(vocab_size: int, dtype: str, tmp_path: Path) -> None:
    tokenizer = loud_tokenizer(SCHEDULE, vocab_size=vocab_size)
    with torch.no_grad():  # the codes that images use are the last ones
        tokenizer.quantizer.codebook.weight[:-48] = 1000
    cache = make_in(tmp_path / "tokens", tokenizer, views=1)
    assert cache.tokens_VNL.dtype == dtype and cache.tokens_VNL.min() >= vocab_size - 48
    batch = next(training_batches(SOURCE, DATA, size=(8, 8), batch_size=7, seed=5, steps=range(1)))
    expected = tokenizer.encode(batch.items).numpy()
    assert numpy.array_equal(cache.tokens_VNL[0, batch.samples_B.numpy()], expected)


def test_neither_batch_nor_workers_change_anything(
    whole: TokenCache, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    make_cache(
        tmp_path / "tokens", source=SOURCE, tokenizer=tokenizer, made_from=made_from_memory(tokenizer),
        batch_size=16, num_workers=2, progress=False,
    )  # fmt: skip
    assert _contents(tmp_path / "tokens") == _contents(whole.folder)


def test_batches_read_no_more_of_a_memory_map_than_they_need(tmp_path: Path) -> None:
    """A file of half a gigabyte that takes no room on the disk: holes are read as zeros."""
    shape = 4, 100_000, 680
    with (tmp_path / "tokens.npy").open("wb") as file:
        head = {"descr": "<u2", "fortran_order": False, "shape": shape}
        numpy.lib.format.write_array_header_1_0(file, head)
        file.truncate(file.tell() + 2 * int(numpy.prod(shape)))
    tokens = numpy.load(tmp_path / "tokens.npy", mmap_mode="r")
    labels = numpy.zeros(shape[1], dtype=numpy.int64)
    before = _resident_bytes()
    for batch in token_batches(tokens, labels, batch_size=16, seed=0, steps=range(10)):
        assert batch.items.shape == (16, 680)
    assert _resident_bytes() - before < 60 * 2**20 < tokens.nbytes / 5


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


# stopped and started again


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("calls", range(12))
def test_a_killed_one_goes_on_and_equals_an_undisturbed_one(
    calls: int, whole: TokenCache, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """21 rows in eleven batches, written down after every second one; killed before batch ``calls``."""
    monkeypatch.setattr(tokenizing, "CHUNK", 4)
    encode, folder = tokenizer.encode, tmp_path / "tokens"
    encoded: list[int] = []

    def count(images: torch.Tensor, **given: Any) -> torch.Tensor:
        if len(encoded) == calls:
            raise _KilledError
        encoded.append(len(images))
        return encode(images, **given)

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "encode", count)
        if calls < 11:
            with pytest.raises(_KilledError):
                make_in(folder, tokenizer)
            with pytest.raises(
                ValueError, match="unfinished token cache: run the command that makes it again"
            ):
                open_cache(folder)
            assert json.loads((folder / "making.json").read_text())["num_rows"] == 2 * (calls - calls % 2)
        calls = 100
        make_in(folder, tokenizer)
    assert sum(encoded) <= 21 + 2
    assert _contents(folder) == _contents(whole.folder)


def test_killed_before_the_last_file(
    whole: TokenCache, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tokenizing, "_finish", lambda *_: None)
        with pytest.raises(ValueError, match="unfinished token cache"):
            make_in(tmp_path / "tokens", tokenizer)
    monkeypatch.setattr(tokenizer, "encode", lambda _: pytest.fail("encoded again"))
    make_in(tmp_path / "tokens", tokenizer)
    assert _contents(tmp_path / "tokens") == _contents(whole.folder)


def test_killed_while_the_folder_was_claimed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / ".making.json.abc").write_text("{")
    make_in(tmp_path, tokenizer)


def test_rows_that_vanished(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tokenizing, "_finish", lambda *_: None)
        with pytest.raises(ValueError, match="unfinished"):
            make_in(tmp_path, tokenizer)
    (tmp_path / "tokens.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"tokens\.npy holds less than making\.json says: remove"):
        make_in(tmp_path, tokenizer)


def test_a_finished_one_is_opened(whole: TokenCache, tokenizer: Tokenizer) -> None:
    before = {item: item.stat().st_mtime_ns for item in whole.folder.iterdir()}
    again = make_in(whole.folder, tokenizer)
    assert numpy.array_equal(again.tokens_VNL, whole.tokens_VNL)
    assert {item: item.stat().st_mtime_ns for item in whole.folder.iterdir()} == before


# refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": 2}, "holds a token cache with views = 3, not 2: give the same settings to go on"),
        ({"seed": 6}, "with seed = 5, not 6"),
        ({"held_out": 0.5}, "with held_out = null, not 0.5"),
        ({"tokenizer_sha256": "1" * 64}, f'with tokenizer_sha256 = "{DIGEST}", not "1111'),
        ({"data": DATA.model_copy(update={"flip": False})}, "with flip = true, not false"),
        ({"data": DATA.model_copy(update={"enlarge": 1.5})}, "with enlarge = 1.25, not 1.5"),
        ({"data": DATA.model_copy(update={"source": "other"})}, 'with source = "memory", not "other"'),
    ],
    ids=str,
)
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
def test_another_cache_in_the_same_folder(
    changes: dict[str, Any], message: str, finished: bool, tokenizer: Tokenizer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if finished:
        make_in(tmp_path, tokenizer)
    else:
        monkeypatch.setattr(tokenizing, "_finish", lambda *_: None)
        with pytest.raises(ValueError, match="unfinished"):
            make_in(tmp_path, tokenizer)
    before = _contents(tmp_path)
    with pytest.raises(ValueError, match=message):
        make_in(tmp_path, tokenizer, **changes)
    assert _contents(tmp_path) == before


def test_a_folder_with_something_else(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="exists and is no token cache: give another folder"):
            make_in(folder, tokenizer)
    assert _contents(tmp_path) == {"notes.txt": b"mine"}
    with pytest.raises(ValueError, match="holds no token cache: make one with nextscale tokenize"):
        open_cache(tmp_path)
    (tmp_path / "cache.json").write_text('{"mine": 1}')
    for call in (lambda: make_in(tmp_path, tokenizer), lambda: open_cache(tmp_path)):
        with pytest.raises(ValueError, match=r"cache\.json is not the record of a token cache"):
            call()


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        (DATA, {"views": 0}, "views 0 must be at least 1"),
        (DATA, {"seed": -1}, "seed -1 must be a whole number"),
        (
            DataSettings(enlarge=1.0),
            {"views": 2},
            "2 views without flip and with enlarge 1 would be the same",
        ),
    ],
    ids=["views", "seed", "same"],
)
def test_settings_that_make_no_sense(
    data: DataSettings, changes: dict[str, Any], message: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ValueError, match=message):
        made_from_memory(tokenizer, data, **changes)


def test_the_center_crop_depends_on_no_seed(tokenizer: Tokenizer) -> None:
    plain = DataSettings(enlarge=1.0)
    given = [made_from_memory(tokenizer, plain, views=1, seed=seed) for seed in (0, 1)]
    assert given[0] == given[1] and given[0].seed is None
