"""Files and folders are whole or absent, damage is found, and weights that do not fit are named."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from nextscale import checkpoint


def test_write_file_makes_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    checkpoint.write_file(tmp_path / "a" / "b.txt", "héllo")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "héllo".encode()
    assert os.listdir(tmp_path / "a") == ["b.txt"]
    assert (tmp_path / "a" / "b.txt").stat().st_mode & 0o777 == 0o644


def test_write_file_that_fails_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    checkpoint.write_file(path, "old")

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_file(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_json_is_readable(tmp_path: Path) -> None:
    checkpoint.write_json(tmp_path / "a.json", {"name": "grün", "sizes": [1, 2]})
    assert '"name": "grün"' in (tmp_path / "a.json").read_text()


def test_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert checkpoint.digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_new_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    for content in ("first", "second"):
        with checkpoint.new_folder(target) as place:
            (place / content).mkdir()
            (place / content / "file").write_text(content)
    assert os.listdir(target) == ["second"]
    assert (target / "second" / "file").read_text() == "second"
    assert os.listdir(target.parent) == ["model"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_new_folder_that_fails_leaves_the_old_one(tmp_path: Path, stop: type[BaseException]) -> None:
    target = tmp_path / "model"
    with checkpoint.new_folder(target) as place:
        (place / "weights").write_text("old")
    with pytest.raises(stop), checkpoint.new_folder(target) as place:
        (place / "weights").write_text("half")
        raise stop
    assert (target / "weights").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


def test_new_folder_is_not_seen_before_it_is_whole(tmp_path: Path) -> None:
    with checkpoint.new_folder(tmp_path / "model") as place:
        (place / "weights").write_text("whole")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "weights").read_text() == "whole"


def test_new_folder_that_cannot_take_its_place_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    with checkpoint.new_folder(target) as place:
        (place / "weights").write_text("old")
    rename = Path.rename

    def refuse(self: Path, other: Path) -> Path:
        if other == target and not self.name.endswith(".old"):
            raise OSError("refused")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="refused"), checkpoint.new_folder(target) as place:
        (place / "weights").write_text("new")
    assert (target / "weights").read_text() == "old"


def _folder_with_digests(folder: Path) -> None:
    folder.mkdir()
    checkpoint.write_tensors(folder / "weights.safetensors", {"a": torch.arange(100.0)})
    checkpoint.write_json(folder / "state.json", {"step": 3})
    checkpoint.write_digests(folder)


def test_an_untouched_folder_passes(tmp_path: Path) -> None:
    _folder_with_digests(tmp_path / "step")
    checkpoint.check_digests(tmp_path / "step")


def test_one_flipped_bit_is_found(tmp_path: Path) -> None:
    _folder_with_digests(tmp_path / "step")
    path = tmp_path / "step" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.safetensors was changed or damaged"):
        checkpoint.check_digests(tmp_path / "step")


def test_a_truncated_file_is_found(tmp_path: Path) -> None:
    _folder_with_digests(tmp_path / "step")
    path = tmp_path / "step" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"weights\.safetensors was changed or damaged"):
        checkpoint.check_digests(tmp_path / "step")


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "digests.json"])
def test_a_missing_file_is_found(tmp_path: Path, name: str) -> None:
    _folder_with_digests(tmp_path / "step")
    (tmp_path / "step" / name).unlink()
    with pytest.raises(ValueError, match=rf"{name}.*the checkpoint is incomplete"):
        checkpoint.check_digests(tmp_path / "step")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"weights.safetensors": 3}'])
def test_a_record_of_digests_that_makes_no_sense(tmp_path: Path, content: str) -> None:
    _folder_with_digests(tmp_path / "step")
    (tmp_path / "step" / "digests.json").write_text(content)
    with pytest.raises(ValueError, match=r"incomplete|changed or damaged"):
        checkpoint.check_digests(tmp_path / "step")


def test_tensors_come_back_as_they_went(tmp_path: Path) -> None:
    tensors = {
        "a": torch.rand(2, 3, requires_grad=True),
        "transposed": torch.rand(4, 5).T,
        "half": torch.rand(3).bfloat16(),
        "whole": torch.arange(4),
        "single": torch.tensor(2.0),
    }
    checkpoint.write_tensors(tmp_path / "x.safetensors", tensors)
    again = checkpoint.read_tensors(tmp_path / "x.safetensors")
    assert set(again) == set(tensors)
    for name, value in tensors.items():
        assert again[name].dtype == value.dtype and torch.equal(again[name], value)


def test_tensors_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.safetensors does not exist"):
        checkpoint.read_tensors(tmp_path / "x.safetensors")
    checkpoint.write_tensors(tmp_path / "x.safetensors", {"a": torch.rand(100)})
    path = tmp_path / "x.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"x\.safetensors is not a readable safetensors file"):
        checkpoint.read_tensors(path)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_load_into_fills_a_module(device: str) -> None:
    source = nn.Linear(3, 2)
    with torch.device(device):
        target = nn.Linear(3, 2)
    checkpoint.load_into(target, source.state_dict(), source="x")
    assert torch.equal(target.weight, source.weight) and torch.equal(target.bias, source.bias)


def test_load_into_names_what_does_not_fit() -> None:
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    tensors = {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}
    expected = (
        r"^some\.safetensors does not fit the model: bias is missing; extra is not part of the model; "
        r"weight has shape \(2, 4\), expected \(2, 3\); use the settings"
    )
    with pytest.raises(ValueError, match=expected):
        checkpoint.load_into(module, tensors, source="some.safetensors")
    assert torch.equal(module.weight, before)


def test_load_into_names_the_first_three_and_counts_the_rest() -> None:
    module = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
    with pytest.raises(
        ValueError, match=r"0\.weight is missing; 0\.bias is missing; 1\.weight is missing and 5 more"
    ):
        checkpoint.load_into(module, {}, source="x")
