"""What a run works with is held against last time: code and variables, and every image by name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch.nn import functional

from images import noise
from nextscale.integrity import fingerprint, merkle
from nextscale.integrity.ledger import follow
from nextscale.train.prior_task import PriorTask
from runs_for_tests import Run, make_home, tiny_run, train_quietly


def _records(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in follow(folder / "ledger.jsonl") if record["kind"] == kind]


def _with(run: Run, **ledger: Any) -> Run:
    return run.model_copy(update={"ledger": run.ledger.model_copy(update=ledger)})


def _refusal(run: Run, folder: Path) -> tuple[str, str]:
    """What a start is refused with, and the code that accepts it."""
    with pytest.raises(ValueError, match=r"add --ledger\.accept") as caught:
        train_quietly(run, folder, curves=True)
    return str(caught.value), str(caught.value)[-12:]


# code and variables


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("checked"))


@pytest.mark.attack(by="start, by fingerprint and images", names="the variable")
@pytest.mark.slow
def test_variables_that_load_code_are_refused_and_others_told(
    checked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _with(tiny_run("classifier", checked, num_steps=1), fingerprint=True)
    folder = tmp_path / "run"
    train_quietly(run, folder, curves=True)
    taken = _records(folder, "fingerprint")
    assert len(taken) == 1 and "code:train/loop.py" in taken[0]["lines"] and not taken[0]["wrong"]
    monkeypatch.setenv("OMP_SCHEDULE", "dynamic")
    _, said = train_quietly(run, folder, curves=True)
    assert "since the last start: numeric OMP_SCHEDULE is new" in said
    assert "numeric OMP_SCHEDULE is new" in [record["text"] for record in _records(folder, "changed")]
    monkeypatch.setenv("PYTHONSTARTUP", "evil.py")
    text, code = _refusal(run, folder)
    assert text.startswith("variable PYTHONSTARTUP is new: ")
    _, said = train_quietly(_with(run, accept=code), folder, curves=True)
    assert "accepted: variable PYTHONSTARTUP is new" in said
    train_quietly(run, folder, curves=True)
    assert _records(folder, "resume")[1]["accepted"] == ["variable PYTHONSTARTUP is new"]


@pytest.mark.attack(by="start, by fingerprint and images", names="the function")
@pytest.mark.slow
def test_a_run_does_not_start_with_code_that_was_replaced(
    checked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PriorTask, "loss", lambda *_: None)
    run = _with(tiny_run("prior", checked), fingerprint=True)
    assert "prior_task.PriorTask.loss is not what its source file says" in _refusal(run, tmp_path / "run")[0]


@pytest.mark.attack(by="start, by fingerprint and images", names="the function")
@pytest.mark.slow
@pytest.mark.parametrize(("every", "step", "kept"), [(1, 5, [4]), (100, 8, [4])])
def test_code_replaced_while_a_run_goes_on_ends_it_before_its_next_checkpoint(
    every: int, step: int, kept: list[int], checked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, original, count = Image.open, functional.cross_entropy, iter(range(1000))

    def opening(*arguments: Any, **named: Any) -> Any:
        if next(count) == 18:  # an image of step 5
            monkeypatch.setattr(functional, "cross_entropy", lambda *a, **k: original(*a, **k))
        return opened(*arguments, **named)

    monkeypatch.setattr(Image, "open", opening)
    run, folder = _with(tiny_run("prior", checked), fingerprint=True, recheck_every=every), tmp_path / "run"
    message = rf"replaced in memory before step {step}: torch\.nn\.functional\.cross_entropy; nothing"
    with pytest.raises(ValueError, match=message):
        train_quietly(run, folder, curves=True)
    assert [record["step"] for record in _records(folder, "checkpoint")] == kept
    assert "cross_entropy" in _records(folder, "failed")[0]["text"]


@pytest.mark.attack(by="start, by fingerprint and images", names="the file")
@pytest.mark.slow
def test_files_changed_on_disk_while_a_run_goes_on_are_recorded_and_then_refused(
    checked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of this package are left alone: others stand in their place."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")
    monkeypatch.setattr(fingerprint, "_HOME", tmp_path / "code")
    opened, count = Image.open, iter(range(1000))

    def opening(*arguments: Any, **named: Any) -> Any:
        if next(count) == 18:  # an image of step 5
            (tmp_path / "code" / "a.py").write_text("2")
        return opened(*arguments, **named)

    monkeypatch.setattr(Image, "open", opening)
    run, folder = _with(tiny_run("prior", checked), fingerprint=True), tmp_path / "run"
    train_quietly(run, folder, curves=True)
    assert [record["text"] for record in _records(folder, "changed")] == [
        "code a.py was changed while the run went on"
    ]
    assert _refusal(run, folder)[0].startswith("code a.py was changed: find out why")


# images


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Pictures, and a finished run on them."""
    place = make_home(tmp_path / "home")
    train_quietly(tiny_run("classifier", place, num_steps=1), place / "run")
    return place


def _move(home: Path) -> None:
    first = sorted((home / "pictures/class 00").iterdir())[0]
    first.rename(home / "pictures/class 01" / first.name)


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "replaced": (
        lambda home: noise(99, (10, 9)).save(sorted((home / "pictures/class 00").iterdir())[1]),
        r"training images: \S*/pictures/class 00/\S+ was changed",
    ),
    "dropped": (
        lambda home: sorted((home / "pictures/class 00").iterdir())[0].unlink(),
        r"training images: 18 records, were 19.*record 0 is gone",
    ),
    "doubled": (
        lambda home: shutil.copy(
            sorted((home / "pictures/class 00").iterdir())[0], home / "pictures/class 00/zz.png"
        ),
        r"training images: 20 records, were 19.*zz\.png is new or doubled",
    ),
    "label changed": (_move, r"training images: \S*/pictures/class 0\d/\S+ was changed"),
}


@pytest.mark.attack(by="start, by fingerprint and images", names="the image")
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_image_that_was_changed_has_a_name(attack: str, home: Path) -> None:
    run, folder = tiny_run("classifier", home, num_steps=1), home / "run"
    train_quietly(run, folder)  # the honest twin
    change, expected = ATTACKS[attack]
    change(home)
    text, code = _refusal(run, folder)
    assert re.search(expected, text.replace(str(home), "/h")), text
    train_quietly(_with(run, accept=code), folder)
    assert len(_records(folder, "data")) == 2
    train_quietly(run, folder)
    assert len(_records(folder, "data")) == 2
    train_quietly(_with(run, data=False), folder)


def test_without_the_hashes_of_then_a_change_is_known_but_has_no_name(home: Path) -> None:
    run, folder = tiny_run("classifier", home, num_steps=1), home / "run"
    for file in (folder / "data").iterdir():
        file.write_bytes(b"1" * 64)
    train_quietly(run, folder)  # the images are the same: nobody asks
    ATTACKS["replaced"][0](home)
    assert "training images were changed, and " in _refusal(run, folder)[0]


# the tree


def test_a_root_depends_on_every_record_their_order_and_their_number(tmp_path: Path) -> None:
    leaves = [merkle.leaf(bytes([number]), number) for number in range(5)]
    others = [
        leaves[:4], leaves[::-1], [*leaves, leaves[4]], [], leaves[:1], [*leaves[:4], merkle.leaf(b"\4", 3)],
        [*leaves[:4], merkle.leaf(b"\5", 4)],
    ]  # fmt: skip
    assert len({merkle.root(item) for item in [leaves, *others]}) == 8
    merkle.write_leaves(tmp_path / "x", leaves)
    assert merkle.read_leaves(tmp_path / "x", expected=merkle.root(leaves)) == leaves
    with pytest.raises(ValueError, match="does not hold the hashes"):
        merkle.read_leaves(tmp_path / "x", expected=merkle.root(leaves[:4]))
    with pytest.raises(ValueError, match="does not hold the hashes"):
        merkle.read_leaves(tmp_path / "y", expected=merkle.root(leaves))


def test_differences_of_records_in_words() -> None:
    old = [b"a", b"b", b"c"]
    assert merkle.differences(old, old, str) == []
    assert merkle.differences(old, [b"a", b"x", b"c"], str) == ["1 was changed"]
    assert merkle.differences(old, [b"b", b"a", b"c"], str) == ["2 records stand in another order, first 0"]
    assert merkle.differences(old, [b"a", b"c"], str) == ["2 records, were 3", "record 1 is gone"]
