"""Recorded passes against the prior as it is: buffers that stay, batch sizes, guidance, generations in turn.

What is recorded is run again from the same buffers. CUDA graphs need a GPU: there, `nextscale bench
generate --cuda-graphs` (part of `make bench-gpu`) compares the tokens before it times anything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from models_for_tests import model_settings, random_generator, tokens_of
from nextscale.generate.generator import Generator
from nextscale.generate.graphs import GraphedPrior, Recorded
from nextscale.prior.next_scale import NextScalePrior
from nextscale.studies.bench.default import Default, use_cuda_graphs

_SETTINGS = [{}, {"guidance": 0.0}, {"num_unguided_scales": 1}, {"ssg": 0.3}, {"guidance": [0.0, 3.0, 1.0]}]


class Recorder:
    """Runs again what was recorded, into the outputs of the first time; a GPU does the same."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, run: Callable[[], Any]) -> Recorded:
        self.count += 1
        outputs = run()

        def replay() -> None:
            with torch.no_grad():
                for kept, new in zip(_tensors(outputs), _tensors(run()), strict=True):
                    kept.copy_(new)

        for kept in _tensors(outputs):  # a graph's memory is empty until its first replay
            kept.fill_(float("nan"))
        return replay, outputs


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for part in outputs for tensor in _tensors(part)]


@pytest.fixture
def pair() -> tuple[Generator, Generator, Recorder]:
    """The same model plainly and with recorded passes."""
    plain, fast, recorder = random_generator(), random_generator(), Recorder()
    assert isinstance(fast.prior, NextScalePrior)
    fast._graphed = GraphedPrior(fast.prior, new_recorder=lambda: recorder)
    return plain, fast, recorder


@pytest.mark.parametrize("settings", _SETTINGS, ids=str)
def test_the_same_images(pair: tuple[Generator, Generator, Recorder], settings: dict[str, Any]) -> None:
    plain, fast, recorder = pair
    labels, num_scales = [1, None, 3], plain.settings.schedule.num_scales
    for first in (0, 10):  # the second time all of it is replayed
        seeds = range(first, first + 3)
        expected = plain(labels, seeds=seeds, **settings)
        given = fast(labels, seeds=seeds, **settings)
        assert torch.equal(tokens_of(given), tokens_of(expected))
        assert torch.equal(given.images_BCHW, expected.images_BCHW)
        labels = [2, 0, None]
    assert recorder.count == 1 + num_scales


def test_another_batch_size_is_recorded_anew(pair: tuple[Generator, Generator, Recorder]) -> None:
    plain, fast, recorder = pair
    for labels in ([1, 2], [3], [4, 5]):
        seeds = range(len(labels))
        assert torch.equal(tokens_of(fast(labels, seeds=seeds)), tokens_of(plain(labels, seeds=seeds)))
    assert recorder.count == 3 * (1 + plain.settings.schedule.num_scales)


def test_generations_side_by_side(pair: tuple[Generator, Generator, Recorder]) -> None:
    plain, fast, recorder = pair
    fast([0], seeds=[0])
    recorded = recorder.count
    streams = [fast.stream([label], seeds=[label]) for label in (1, 2)]
    for previews in zip(*streams, strict=True):
        for label, preview in zip((1, 2), previews, strict=True):
            assert preview.tokens_BL is not None
            count = preview.tokens_BL.shape[1]
            expected = tokens_of(plain([label], seeds=[label]))
            assert torch.equal(preview.tokens_BL, expected[:, :count])
    unfinished = fast.stream([3], seeds=[3])
    next(unfinished)
    assert fast._graphed is not None and fast._graphed._busy
    unfinished.close()
    assert not fast._graphed._busy and recorder.count == recorded
    assert torch.equal(tokens_of(fast([4], seeds=[4])), tokens_of(plain([4], seeds=[4])))


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="CUDA graphs are for next_scale models on a GPU"):
        random_generator().use_cuda_graphs()
    other = random_generator(model_settings(sizes=[(4, 4)], prior={"kind": "next_token"}, num_phis=1))
    with pytest.raises(ValueError, match="CUDA graphs are for next_scale models on a GPU"):
        other.use_cuda_graphs()


def test_modes_of_the_first_caller_do_not_stay(pair: tuple[Generator, Generator, Recorder]) -> None:
    plain, fast, _ = pair
    expected = tokens_of(plain([1, 2], seeds=[0, 1]))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokens_of(fast([1, 2], seeds=[0, 1])), expected)
    assert torch.equal(tokens_of(fast([1, 2], seeds=[0, 1])), expected)


def test_a_generation_that_never_began_holds_nothing(pair: tuple[Generator, Generator, Recorder]) -> None:
    plain, fast, _ = pair
    prior = fast._graphed
    assert prior is not None
    with torch.no_grad():
        prior.condition(torch.tensor([1, 2]))  # and no cache is asked for
        held = prior.new_cache(2)
        plainly = prior.condition(torch.tensor([3]))  # while another generation holds the graphs
        del held
        assert prior.new_cache(1).tensor.shape[2] == len(plainly.start_BD) == 1 and not prior._busy
    assert torch.equal(tokens_of(fast([4], seeds=[4])), tokens_of(plain([4], seeds=[4])))


def test_the_benchmark_looks_at_the_tokens_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def graphed(broken: bool, prior: NextScalePrior) -> GraphedPrior:
        if broken:
            prior.head.bias.data[5] += 100
        return GraphedPrior(prior, new_recorder=Recorder)

    for broken in (False, True):
        monkeypatch.setattr("nextscale.generate.generator.graphed", partial(graphed, broken))
        default = Default(random_generator(), weight_bytes=0)
        if not broken:
            use_cuda_graphs(default, batch=3)
            continue
        with pytest.raises(ValueError, match="CUDA graphs give other tokens than the same passes without"):
            use_cuda_graphs(default, batch=3)
