"""Data sets of Hugging Face: saved ones are opened for real, those of the hub through a stand-in."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from images import encoded, noise
from nextscale.data.sources import BadImageError, Source, open_source
from nextscale.data.sources.hugging_face import HuggingFaceSource

datasets = pytest.importorskip("datasets")

Make = Callable[..., Any]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """A data set of five images; columns and their features can be given."""
    monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 2**20)
    datasets.disable_progress_bars()

    def make(**columns: tuple[list[Any], Any]) -> Any:
        rows = [{"bytes": encoded(noise(i)), "path": f"{i}.png"} for i in range(5)]
        names = datasets.ClassLabel(names=["x", "y", "z"])
        columns = columns or {"image": (rows, datasets.Image()), "label": ([0, 2, 2, 0, 1], names)}
        columns = {name: (values or rows, feature) for name, (values, feature) in columns.items()}
        features = datasets.Features({name: feature for name, (_, feature) in columns.items()})
        return datasets.Dataset.from_dict({name: values for name, (values, _) in columns.items()}, features)

    return make


def _check(source: Source, order: list[int]) -> None:
    assert [source.read(i) for i in range(len(order))] == [encoded(noise(i)) for i in order]


def test_a_saved_data_set(make: Make, tmp_path: Path) -> None:
    make().save_to_disk(tmp_path / "saved")
    source = open_source(tmp_path / "saved")
    assert isinstance(source, HuggingFaceSource)
    assert source.class_names == ("x", "y", "z") and source.labels.tolist() == [0, 2, 2, 0, 1]
    assert source.name(3) == f"{tmp_path}/saved row 3"
    _check(source, [0, 1, 2, 3, 4])
    _check(pickle.loads(pickle.dumps(source)), [0, 1, 2, 3, 4])  # on its way to a spawned process


def test_chosen_and_shuffled_rows(make: Make, tmp_path: Path) -> None:
    make().select([4, 0, 2]).save_to_disk(tmp_path / "saved")
    source = open_source(tmp_path / "saved")
    assert source.labels.tolist() == [1, 0, 2]
    _check(source, [4, 0, 2])


def test_saved_splits_are_named(make: Make, tmp_path: Path) -> None:
    datasets.DatasetDict({"train": make(), "other": make()}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"holds the splits other, train: give one of them, .*/saved/other"):
        open_source(tmp_path / "saved")
    _check(open_source(tmp_path / "saved" / "train"), [0, 1, 2, 3, 4])


def test_a_damaged_folder_is_refused(make: Make, tmp_path: Path) -> None:
    make().save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"saved cannot be read as a data set"):
        open_source(tmp_path / "saved")


def test_columns_are_found_by_what_they_hold(make: Make) -> None:
    kind = datasets.ClassLabel(names=["p", "q"])
    source = HuggingFaceSource(
        make(image=(["a"] * 5, datasets.Value("string")), photo=([], datasets.Image()), kind=([1] * 5, kind)),
        "it",
    )
    assert source.class_names == ("p", "q") and source.labels.tolist() == [1] * 5
    _check(source, [0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("values", "feature", "class_names", "labels"),
    [
        ([0, 3, 1, 0, 0], "int64", ("0", "1", "2", "3"), [0, 3, 1, 0, 0]),
        (["b", "a", "b", "b", "b"], "string", ("a", "b"), [1, 0, 1, 1, 1]),
    ],
)
def test_labels_without_a_feature(
    make: Make, values: list[Any], feature: str, class_names: tuple[str, ...], labels: list[int]
) -> None:
    dataset = make(img=([], datasets.Image()), label=(values, datasets.Value(feature)))
    source = HuggingFaceSource(dataset, "it")
    assert source.class_names == class_names and source.labels.tolist() == labels


def test_without_labels_it_is_one_class(make: Make) -> None:
    source = HuggingFaceSource(make(img=([], datasets.Image())), "hf:owner/flowers")
    assert source.class_names == ("flowers",) and source.labels.tolist() == [0] * 5


def test_an_image_that_lies_beside_the_data_set(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(7)))
    rows = [{"bytes": None, "path": str(tmp_path / "a.png")}, None]
    source = HuggingFaceSource(make(img=(rows, datasets.Image())), "it")
    assert source.read(0) == encoded(noise(7))
    with pytest.raises(BadImageError, match=r"image it row 1 cannot be read \(the row holds no image"):
        source.read(1)


def test_what_does_not_fit(make: Make) -> None:
    image, number = datasets.Image(), datasets.Value("int64")
    label = datasets.ClassLabel(names=["x", "y"])
    for columns, message in (
        ({"label": ([0] * 5, number)}, r"it has the columns \['label'\]: expected one of images"),
        (
            {"a": ([], image), "b": ([], image)},
            r"it has several columns of images \(a, b\): name one of them",
        ),
        (
            {"a": ([], image), "p": ([0] * 5, label), "q": ([0] * 5, label)},
            r"several columns of labels \(p, q\)",
        ),
        (
            {"a": ([], image), "label": ([0, None, 1, 1, 1], number)},
            "whole numbers or class names and no gaps",
        ),
        ({"a": ([], image), "label": ([-1, 0, 1, 1, 1], label)}, "label holds -1: labels count from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            HuggingFaceSource(make(**columns), "it")
    with pytest.raises(ValueError, match="it holds no images"):
        HuggingFaceSource(make().select([]), "it")


@pytest.mark.parametrize(
    ("text", "name", "revision", "label"),
    [
        ("hf:owner/name", "owner/name", None, 0),
        ("hf:owner/name:test", "owner/name", None, 1),
        ("hf:owner/name@v1.0", "owner/name", "v1.0", 0),
        ("hf:owner/name@v1.0:test", "owner/name", "v1.0", 1),
        ("hf:mnist", "mnist", None, 0),
    ],
)
def test_names_on_the_hub(
    make: Make, monkeypatch: pytest.MonkeyPatch, text: str, name: str, revision: str | None, label: int
) -> None:
    asked = []

    def load(name: str, **options: Any) -> Any:
        asked.append((name, options))
        image = ([], datasets.Image())
        return {split: make(image=image, label=([number] * 5, datasets.Value("int64")))
                for number, split in enumerate(["train", "test"])}  # fmt: skip

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_source(text)
    assert asked == [(name, {"revision": revision})] and source.name(2) == f"{text} row 2"
    assert source.labels.tolist() == [label] * 5
    with pytest.raises(ValueError, match=r"give one of its splits train, test, as in hf:.*:split"):
        open_source("hf:owner/name:nowhere")


def test_what_the_hub_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("no such thing\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        ValueError, match=r"^hf:a/b cannot be loaded \(no such thing\): expected hf:owner/name"
    ):
        open_source("hf:a/b")
    with pytest.raises(ValueError, match=r"hf:a/b/c:d:e names no data set: expected hf:owner/name"):
        open_source("hf:a/b/c:d:e")


def test_without_datasets_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"hf:a/b needs datasets: pip install 'nextscale\[datasets\]'"):
        open_source("hf:a/b")
