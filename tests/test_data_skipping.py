"""Bad images may be skipped: what stands in, what a batch says, and what a run remembers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from images import MemorySource
from nextscale.cli import main
from nextscale.data.loader import Batch, evaluation_batches, places_of_step, readable_part, training_batches
from nextscale.data.settings import DataSettings
from nextscale.data.skipped import SkippedImages
from nextscale.train.tokenizer_task import TokenizerTask
from runs_for_tests import Run, make_home, tiny_run, train_quietly

SKIP = DataSettings(enlarge=1.25, flip=True, on_bad_image="skip")
BAD = (3, 4, 11)


def _source(bad: tuple[int, ...] = BAD, count: int = 12) -> MemorySource:
    source = MemorySource(count)
    for index in bad:
        source.contents[index] = source.contents[index][:50]
    return source


def _batches(source: MemorySource, settings: DataSettings = SKIP, *, start: int = 0) -> list[Batch]:
    return list(
        training_batches(source, settings, size=(32, 48), batch_size=5, seed=0, steps=range(start, 7))
    )


def _same(first: Batch, second: Batch) -> bool:
    return first.skipped == second.skipped and all(
        torch.equal(getattr(first, name), getattr(second, name))
        for name in ("items", "labels_B", "uniforms_BR", "samples_B")
    )


def test_the_next_readable_image_stands_in() -> None:
    stand_in = {3: 5, 4: 5, 11: 0}
    whole = _batches(_source(()))
    by_place: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
    for step, batch in enumerate(whole):
        for row, place in enumerate(places_of_step(step, batch_size=5, num_samples=12, seed=0)):
            by_place[place.epoch, place.sample] = batch.items[row], batch.uniforms_BR[row]
    assert len(by_place) == 35
    seen = set()
    for step, batch in enumerate(_batches(_source())):
        places = places_of_step(step, batch_size=5, num_samples=12, seed=0)
        expected = [stand_in.get(place.sample, place.sample) for place in places]
        assert batch.samples_B.tolist() == expected
        assert batch.labels_B.tolist() == [sample % 3 for sample in expected]
        met = {place.sample for place in places} & set(BAD)
        names = {f"image {sample}" for sample in (met | {4} if 3 in met else met)}
        assert batch.skipped == tuple(sorted(names))
        seen |= names
        for row, (place, sample) in enumerate(zip(places, expected, strict=True)):
            if (place.epoch, sample) in by_place:  # with that sample's own random numbers
                items, uniforms = by_place[place.epoch, sample]
                assert torch.equal(batch.items[row], items)
                assert torch.equal(batch.uniforms_BR[row], uniforms)
    assert seen == {"image 3", "image 4", "image 11"}


def test_workers_and_resumption_change_nothing() -> None:
    alone = _batches(_source())
    shared = _batches(_source(), SKIP.model_copy(update={"num_workers": 2}))
    later = _batches(_source(), start=4)
    assert all(_same(one, other) for one, other in zip(alone, shared, strict=True))
    assert all(_same(one, other) for one, other in zip(alone[4:], later, strict=True))


def test_without_bad_images_skipping_changes_nothing() -> None:
    stopping = _batches(_source(()), SKIP.model_copy(update={"on_bad_image": "stop"}))
    assert all(_same(one, other) for one, other in zip(stopping, _batches(_source(())), strict=True))
    assert not any(batch.skipped for batch in stopping)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_source_that_is_all_bad_stops(num_workers: int) -> None:
    settings = SKIP.model_copy(update={"num_workers": num_workers})
    message = "^none of 4 images can be read: image . and all others are damaged"
    with pytest.raises(ValueError, match=message):
        _batches(_source((0, 1, 2, 3), 4), settings)
    with pytest.raises(ValueError, match=message):
        list(evaluation_batches(_source((0, 1, 2, 3), 4), size=(8, 8), batch_size=3, skipped=SkippedImages()))
    with pytest.raises(ValueError, match=message):
        readable_part(_source((0, 1, 2, 3), 4), SkippedImages())


def test_evaluation_leaves_bad_images_out() -> None:
    skipped = SkippedImages()
    batches = list(evaluation_batches(_source(), size=(8, 8), batch_size=3, skipped=skipped))
    assert [len(pixels) for pixels, _ in batches] == [3, 1, 3, 2]
    labels = numpy.concatenate([labels for _, labels in batches])
    assert labels.tolist() == [index % 3 for index in range(12) if index not in BAD]
    assert skipped.names == ["image 11", "image 3", "image 4"]
    with pytest.raises(ValueError, match="image image 3 cannot be read"):
        list(evaluation_batches(_source(), size=(8, 8), batch_size=3))


def test_the_readable_part() -> None:
    source, skipped = _source(), SkippedImages()
    part = readable_part(source, skipped)
    assert [part.name(i) for i in range(9)] == [f"image {i}" for i in range(12) if i not in BAD]
    assert len(skipped.names) == 3
    whole = _source(())
    assert readable_part(whole, skipped) is whole


def test_names_are_kept_once_and_over_a_restart(tmp_path: Path) -> None:
    first = SkippedImages()
    first.add(["b", "a"])
    first.keep_in(tmp_path)
    first.add(["a", "c"])
    assert (tmp_path / "skipped_images.txt").read_text() == "a\nb\nc\n"
    second = SkippedImages()
    second.add(["0"])
    second.keep_in(tmp_path)
    assert second.names == ["0", "a", "b", "c"]
    SkippedImages().keep_in(tmp_path / "other")
    assert not (tmp_path / "other").exists()


# whole runs


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Pictures of three classes, three of them damaged, one of these held out for validation."""
    folder = make_home(tmp_path)
    files = sorted((folder / "pictures").rglob("*.png"))
    for index in (2, 7, 19):
        files[index].write_bytes(files[index].read_bytes()[:60])
    return folder


def _skipping(run: Run, **more: Any) -> Run:
    return run.model_copy(
        update={"data": run.data.model_copy(update={"on_bad_image": "skip", "validation_share": 0.5}), **more}
    )


@pytest.mark.parametrize("kind", ["tokenizer", "prior", "decoder", "classifier"])
def test_a_run_lists_what_it_skipped(kind: str, home: Path, tmp_path: Path) -> None:
    _, said = train_quietly(_skipping(tiny_run(kind, home)), tmp_path / "run")
    listed = (tmp_path / "run" / "skipped_images.txt").read_text().splitlines()
    files = sorted((home / "pictures").rglob("*.png"))
    assert listed == [str(files[index]) for index in (2, 7, 19)]
    assert said[-4] == f"bad images that were skipped: 3, listed in {tmp_path / 'run' / 'skipped_images.txt'}"
    assert said[-3:] == [f"  {name}" for name in listed]


def test_a_resumed_run_forgets_none(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _skipping(tiny_run("tokenizer", home))
    expected, _ = train_quietly(run, tmp_path / "whole")
    after_step = TokenizerTask.after_step

    def fail(self: Any, number: int) -> None:
        if number == 10:
            raise KeyboardInterrupt
        after_step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerTask, "after_step", fail)
        with pytest.raises(KeyboardInterrupt):
            train_quietly(run, tmp_path / "run")
    scores, said = train_quietly(run, tmp_path / "run")
    assert scores == expected and "going on after step 8 of 12" in said
    names = [(tmp_path / place / "skipped_images.txt").read_text() for place in ("whole", "run")]
    assert names[0] == names[1] and names[0].count("\n") == 3


def test_a_run_that_stopped_at_a_bad_image_may_go_on_and_skip_it(home: Path, tmp_path: Path) -> None:
    run = _skipping(tiny_run("tokenizer", home))
    stopping = run.model_copy(update={"data": run.data.model_copy(update={"on_bad_image": "stop"})})
    with pytest.raises(ValueError, match="cannot be read"):
        train_quietly(stopping, tmp_path / "run")
    assert "on_bad_image" not in json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    train_quietly(run, tmp_path / "run")
    assert (tmp_path / "run" / "skipped_images.txt").exists()


def test_kept_tokens_are_those_of_readable_images(home: Path, tmp_path: Path) -> None:
    run = _skipping(tiny_run("prior", home), cache_views=1)
    run = run.model_copy(update={"data": run.data.model_copy(update={"enlarge": 1.0, "flip": False})})
    _, said = train_quietly(run, tmp_path / "run")
    assert said[0].startswith("9 images of 3 classes")  # of ten; two of the bad ones are held out
    assert len((tmp_path / "run" / "skipped_images.txt").read_text().splitlines()) == 3


def test_the_command_says_it_last(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = home / "run"
    line = ["train", "tokenizer", "cifar10-tiny", "--out", str(out), "--data.source", str(home / "pictures")]
    sizes = ["--loop.num_steps", "1", "--loop.batch_size", "2", "--loop.evaluate_images", "2", "--quiet"]
    assert main([*line, *sizes, "--data.on_bad_image", "skip", "--data.validation_share", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("bad images that were skipped: ") for line in lines[-7:])
