"""The folder of a run: held by one process, swept, and whole when the disk is full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nextscale.train.run import settings_that_decide
from nextscale.train.run_folder import claimed_folder
from runs_for_tests import make_home, tiny_run, train_quietly


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("loop"))


def test_two_processes_cannot_train_in_one_folder(home: Path, tmp_path: Path) -> None:
    run = tiny_run("prior", home)
    description = settings_that_decide(run)
    with (
        claimed_folder(tmp_path / "run", description),
        pytest.raises(ValueError, match="another process works in"),
    ):
        train_quietly(run, tmp_path / "run")


def test_what_interrupted_writes_left_is_swept_away(home: Path, tmp_path: Path) -> None:
    run, folder = tiny_run("prior", home, num_steps=1), tmp_path / "run"
    train_quietly(run, folder)
    half = folder / "checkpoints" / ".step-00000004.abc"
    half.mkdir(parents=True)
    (half / "module.safetensors").write_bytes(b"half")
    (folder / ".run.json.xyz").write_bytes(b"{")
    train_quietly(run, folder)
    assert [item.name for item in folder.rglob(".*")] == [".lock"]


def test_a_disk_that_is_full_ends_the_run_and_keeps_what_was_saved(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = tiny_run("prior", home), tmp_path / "run"
    from nextscale import checkpoint

    write_tensors = checkpoint.write_tensors

    def full(path: Path, tensors: Any) -> None:
        if "step-00000008" in str(path):
            raise OSError(28, "No space left on device", str(path))
        write_tensors(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", full)
        with pytest.raises(OSError, match="No space left on device"):
            train_quietly(run, folder)
    assert [item.name for item in (folder / "checkpoints").iterdir()] == ["step-00000004"]
    assert "going on after step 4 of 12" in train_quietly(run, folder)[1]
