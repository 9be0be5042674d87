"""The passes of a next-scale prior, recorded once and then replayed: CUDA graphs.

Letters: B rows of the transformer (both branches of guidance), T tokens of one scale, C width of a code.
Special here: on a GPU a small batch waits for the CPU to launch thousands of kernels; a recorded pass is one
launch. Every shape is known before the first token, so each scale is recorded at its first use, into memory
that stays. That memory serves one generation at a time, the one that holds the cache; whoever begins another
meanwhile gets the prior as it is.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nextscale.prior.cache import KeyValueCache
from nextscale.prior.next_scale import NextScalePrior
from nextscale.prior.transformer import Condition

#: What to call to compute again, and where the outputs then are.
Recorded: TypeAlias = tuple[Callable[[], None], Any]
#: Records a function of tensors that stay where they are.
Record: TypeAlias = Callable[[Callable[[], Any]], Recorded]

_WARM_UPS = 2


def cuda_recorder(device: torch.device) -> Record:
    """Records what functions launch on a GPU; they must not read anything back.

    All share one pool of memory: what a pass needs while it runs serves the next pass too.
    """
    with torch.cuda.device(device):
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def record(run: Callable[[], Any]) -> Recorded:
        with torch.cuda.device(device):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):  # libraries choose their kernels and take their workspace
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                outputs = run()

        def replay() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return replay, outputs

    return record


def graphed(prior: nn.Module) -> GraphedPrior:
    """A prior whose passes are recorded as CUDA graphs.

    Raises:
        ValueError: another family, or not on a GPU.
    """
    if not isinstance(prior, NextScalePrior) or prior.position.device.type != "cuda":
        raise ValueError("CUDA graphs are for next_scale models on a GPU: load one with device='cuda'")
    return GraphedPrior(prior, new_recorder=partial(cuda_recorder, prior.position.device))


class GraphedPrior:
    """What sampling asks of a `NextScalePrior`, by recorded passes, in the dtype of its weights.

    Those of one batch size are kept at a time: another batch size records its own in their place. Generations
    begin in one thread.

    Args:
        prior: its weights must stay where they are.
        new_recorder: gives what records the passes of a batch size, see `cuda_recorder`.
    """

    def __init__(self, prior: NextScalePrior, *, new_recorder: Callable[[], Record]) -> None:
        self._prior, self._new_recorder = prior, new_recorder
        self.unconditional = prior.unconditional
        self._recorded: dict[tuple[int, int], Recorded] = {}
        self._inputs: dict[tuple[int, int], Tensor] = {}
        self._labels_B: Tensor | None = None
        self._cache: KeyValueCache | None = None
        self._granted = False  #: the generation that begins shall use the graphs
        self._holder: weakref.ref[KeyValueCache] | None = None  #: what the one holds that uses them

    @property
    def _busy(self) -> bool:
        return self._holder is not None and self._holder() is not None

    def condition(self, labels_B: Tensor) -> Condition:
        """As `NextScalePrior.condition`."""
        self._granted = not self._busy
        if not self._granted:
            return self._prior.condition(labels_B)
        with _plainly(labels_B.device):
            if self._labels_B is None or len(self._labels_B) != len(labels_B):
                self._recorded.clear()
                self._inputs.clear()
                self._record = self._new_recorder()
                self._labels_B, self._cache = labels_B.clone(), self._prior.new_cache(len(labels_B))
            kept_B = self._labels_B
            kept_B.copy_(labels_B)
            condition: Condition = self._replay((-1, len(labels_B)), lambda: self._prior.condition(kept_B))
        return condition

    def new_cache(self, batch: int) -> KeyValueCache:
        """As `NextScalePrior.new_cache`; while what it gives is held, no other generation uses graphs."""
        if not self._granted:
            return self._prior.new_cache(batch)
        self._granted = False
        cache = copy.copy(self._cache)
        assert cache is not None and cache.tensor.shape[2] == batch
        self._holder = weakref.ref(cache)
        return cache

    def step(
        self, scale: int, condition: Condition, inputs_BTC: Tensor | None, cache: KeyValueCache
    ) -> Tensor:
        """As `NextScalePrior.step`; the next generation writes over what it returns."""
        if self._holder is None or self._holder() is not cache:
            return self._prior.step(scale, condition, inputs_BTC, cache)
        key = scale, cache.tensor.shape[2]
        with _plainly(cache.tensor.device):
            if inputs_BTC is not None:
                if key not in self._inputs:
                    self._inputs[key] = torch.empty_like(inputs_BTC)
                self._inputs[key].copy_(inputs_BTC)
            kept_BTC = None if inputs_BTC is None else self._inputs[key]
            same = copy.copy(cache)  # the one that was given is what says that the graphs are in use
            logits: Tensor = self._replay(key, lambda: self._prior.step(scale, condition, kept_BTC, same))
        return logits

    def _replay(self, key: tuple[int, int], run: Callable[[], Any]) -> Any:
        if key not in self._recorded:
            self._recorded[key] = self._record(run)
        replay, outputs = self._recorded[key]
        replay()
        return outputs


@contextmanager
def _plainly(device: torch.device) -> Iterator[None]:
    """What is recorded lasts longer than the caller's modes, so it is made without them."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield
