"""A training run's images follow from the step alone: any start, any number of workers, the same batches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from images import MemorySource, encoded, noise
from nextscale.data.loader import Batch, evaluation_batches, places_of_step, token_batches, training_batches
from nextscale.data.settings import DataSettings
from nextscale.data.sources import open_source
from nextscale.pixels import to_uint8

SETTINGS = DataSettings(enlarge=1.25, flip=True)


def _run(
    source: MemorySource, steps: range, settings: DataSettings = SETTINGS, *, seed: int = 0
) -> list[Batch]:
    return list(training_batches(source, settings, size=(8, 8), batch_size=5, seed=seed, steps=steps))


def _same(first: list[Batch], second: list[Batch]) -> bool:
    pairs = zip(first, second, strict=True)
    tensors = ("items", "labels_B", "uniforms_BR", "samples_B")
    return all(
        one.skipped == other.skipped
        and all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
        for one, other in pairs
    )


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
def test_every_epoch_visits_each_sample_once(num_samples: int, batch_size: int, seed: int) -> None:
    num_steps = -(-3 * num_samples // batch_size)
    places = [
        place
        for step in range(num_steps)
        for place in places_of_step(step, batch_size=batch_size, num_samples=num_samples, seed=seed)
    ]
    assert len(places) == num_steps * batch_size
    for epoch in range(3):
        part = places[epoch * num_samples : (epoch + 1) * num_samples]
        assert {place.epoch for place in part} == {epoch}
        assert sorted(place.sample for place in part) == list(range(num_samples))


def test_what_a_batch_is() -> None:
    source = MemorySource(12)
    batch = _run(source, range(1))[0]
    assert batch.items.shape == (5, 3, 8, 8) and batch.items.dtype == torch.float32
    assert batch.items.min() >= -1 and batch.items.max() <= 1
    assert batch.labels_B.tolist() == [source.labels[int(i)] for i in batch.samples_B]
    assert batch.uniforms_BR.shape[0] == 5 and batch.uniforms_BR.dtype == torch.float32
    assert (batch.uniforms_BR >= 0).all() and (batch.uniforms_BR < 1).all()
    assert batch.uniforms_BR.unique().numel() == batch.uniforms_BR.numel()


@pytest.mark.parametrize("start", [1, 2, 3, 6])
def test_a_run_may_go_on_at_any_step(start: int) -> None:
    source = MemorySource(12)
    assert _same(_run(source, range(7))[start:], _run(source, range(start, 7)))


def test_workers_change_nothing() -> None:
    source = MemorySource(12)
    alone = _run(source, range(5))
    assert _same(alone, _run(source, range(5), SETTINGS.model_copy(update={"num_workers": 2})))


def test_the_generator_of_torch_changes_nothing() -> None:
    source = MemorySource(12)
    first = _run(source, range(3))
    torch.manual_seed(12345)
    assert _same(first, _run(source, range(3)))


@pytest.mark.parametrize("dtype", ["<u2", "<i4"])
@pytest.mark.parametrize("num_views", [1, 3])
def test_kept_tokens_come_with_the_same_samples_and_random_numbers(num_views: int, dtype: str) -> None:
    """Epoch e reads view e mod V: these tokens say which view and sample they are."""
    source, batch_size, steps = MemorySource(12), 5, range(2, 14)  # five epochs
    views, samples = numpy.meshgrid(numpy.arange(num_views), numpy.arange(12), indexing="ij")
    tokens = numpy.stack([views, samples], axis=2).astype(dtype)
    kept = token_batches(tokens, source.labels, batch_size=batch_size, seed=0, steps=steps)
    for step, one, other in zip(steps, kept, _run(source, steps), strict=True):
        epochs = torch.arange(step * batch_size, (step + 1) * batch_size) // 12
        expected = torch.stack([epochs % num_views, other.samples_B], dim=1)
        assert one.items.dtype == torch.int64 and torch.equal(one.items, expected)
        assert torch.equal(one.labels_B, other.labels_B)
        assert torch.equal(one.samples_B, other.samples_B)
        assert torch.equal(one.uniforms_BR, other.uniforms_BR)


def test_seeds_and_epochs_differ() -> None:
    source = MemorySource(5)
    first, second = _run(source, range(2))
    other = _run(source, range(1), seed=1)[0]
    assert sorted(first.samples_B.tolist()) == sorted(second.samples_B.tolist())
    place = {int(sample): index for index, sample in enumerate(second.samples_B)}
    order = [place[int(sample)] for sample in first.samples_B]
    assert not torch.equal(first.items, second.items[order])  # cropped elsewhere
    assert not torch.equal(first.uniforms_BR, other.uniforms_BR)


def test_a_crop_depends_on_its_sample_alone() -> None:
    """The same sample in the same epoch looks the same whatever the batch size."""
    source = MemorySource(12)
    small = _run(source, range(2))
    large = next(training_batches(source, SETTINGS, size=(8, 8), batch_size=10, seed=0, steps=range(1)))
    joined = torch.cat([batch.items for batch in small])
    assert torch.equal(joined, large.items)
    assert torch.equal(torch.cat([batch.uniforms_BR for batch in small]), large.uniforms_BR)


def test_without_enlarging_or_flipping_the_crop_is_the_centre() -> None:
    source, plain = MemorySource(6), DataSettings(enlarge=1.0, flip=False)
    centres, _ = next(evaluation_batches(source, size=(8, 8), batch_size=6))
    for batch in _run(source, range(2), plain):
        assert numpy.array_equal(to_uint8(batch.items), centres[batch.samples_B.numpy()])


def test_flipping_mirrors_about_half() -> None:
    source = MemorySource(20)
    flipping, plain = DataSettings(enlarge=1.0, flip=True), DataSettings(enlarge=1.0, flip=False)
    mirrored = Counter[bool]()
    for given_batch, batch in zip(
        _run(source, range(20), plain), _run(source, range(20), flipping), strict=True
    ):
        for before, after in zip(given_batch.items, batch.items, strict=True):
            same, turned = torch.equal(before, after), torch.equal(before.flip(-1), after)
            assert same != turned
            mirrored[turned] += 1
    assert 30 <= mirrored[True] <= 70


def test_enlarging_moves_the_crop() -> None:
    source = MemorySource(1)
    pictures = {
        batch.items[0].numpy().tobytes() for batch in _run(source, range(4), DataSettings(enlarge=2.0))
    }
    assert len(pictures) == 4


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_stops_with_its_name(tmp_path: Path, num_workers: int) -> None:
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(encoded(noise(index)))
    (tmp_path / "broken.png").write_bytes(encoded(noise(9))[:100])
    settings = DataSettings(num_workers=num_workers)
    batches = training_batches(
        open_source(tmp_path), settings, size=(8, 8), batch_size=2, seed=0, steps=range(2)
    )
    with pytest.raises(ValueError, match=r"^image .*broken\.png cannot be read \(.*\): repair or remove it$"):
        list(batches)


def test_evaluation_goes_through_the_images_in_order() -> None:
    source = MemorySource(7)
    batches = list(evaluation_batches(source, size=(8, 6), batch_size=3))
    assert [len(pixels) for pixels, _ in batches] == [3, 3, 1]
    assert batches[0][0].shape == (3, 8, 6, 3) and batches[0][0].dtype == numpy.uint8
    assert numpy.concatenate([labels for _, labels in batches]).tolist() == source.labels.tolist()


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (3, 3), (7, 7), (100, 7), (None, 7)])
def test_evaluation_of_some_images_spreads_them(limit: int | None, expected: int) -> None:
    source = MemorySource(7)
    everything = next(evaluation_batches(source, size=(8, 8), batch_size=7))[0]
    some = next(evaluation_batches(source, size=(8, 8), batch_size=7, limit=limit))[0]
    assert len(some) == expected
    assert len(numpy.unique(some.reshape(expected, -1), axis=0)) == expected
    if expected > 1:
        assert numpy.array_equal(some[[0, -1]], everything[[0, -1]])
