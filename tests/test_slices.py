"""Slices in files, read by any number of processes; what sharding cuts, and when it is refused."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.distributed import fsdp

from models_for_tests import model_settings, prior_settings, random_generator
from nextscale.checkpoint import write_json, write_tensors
from nextscale.distributed import Distributed
from nextscale.train.estimate import Estimate, describe
from nextscale.train.memory import Memory
from nextscale.train.run import _check_processes
from nextscale.train.settings import DecoderRun
from nextscale.train.sharding import check_torch, own, own_rows, row_ends, weights_to_cut
from nextscale.train.slices import Copies, SavedTensors, write_copies
from runs_for_tests import tiny_run


@pytest.mark.parametrize(("rows", "ranks"), [(8, 2), (7, 3), (2, 3), (1, 4), (9, 1)])
def test_rows_are_cut_as_torch_cuts_them(rows: int, ranks: int) -> None:
    lengths = [len(part) for part in torch.arange(rows).chunk(ranks)]
    ends, expected = row_ends(rows, ranks), [*lengths, *[0] * (ranks - len(lengths))]
    assert [end - start for start, end in zip([0, *ends], ends, strict=False)] == expected


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_any_rows_of_a_tensor_are_read(num_ranks: int, tmp_path: Path) -> None:
    weight, bias = torch.randn(5, 3), torch.randn(2)
    ends = row_ends(5, num_ranks)
    for rank, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        write_tensors(tmp_path / f"slices-{rank:05d}.safetensors", {"module/weight": weight[start:end]})
    write_tensors(tmp_path / "module.safetensors", {"bias": bias, "step": torch.tensor(3.0)})
    write_json(tmp_path / "slices.json", {"module/weight": ends})
    saved = SavedTensors(tmp_path)
    assert saved.shapes("module") == {"weight": (5, 3), "bias": (2,), "step": ()}
    for start in range(6):
        for stop in range(start, 6):
            rows = saved.read("module", "weight", slice(start, stop))
            assert rows.shape == (stop - start, 3) and torch.equal(rows, weight[start:stop])
    everything = saved.load_all("module")
    assert torch.equal(everything["weight"], weight) and torch.equal(everything["bias"], bias)
    module = nn.Linear(3, 5)
    with pytest.raises(ValueError, match=r"bias has shape \(2,\), expected \(5,\)"):
        saved.load_into(module, "module")


def test_a_folder_that_not_all_machines_see_is_refused(tmp_path: Path) -> None:
    class Apart:
        """The first of two processes; the other one has written elsewhere."""

        rank, world_size, is_first = 0, 2, True

        def together(self) -> Any:
            return nullcontext()

        def gather(self, text: str) -> list[str]:
            return [text, json.dumps({"slices-00001.safetensors": "0"})]

    copies = Copies({"module": {}}, {"module/weight": torch.ones(1, 2)}, {"module/weight": [1, 2]})
    message = r"slices-00001.safetensors, which another process wrote, cannot be seen by the first one: put"
    with pytest.raises(ValueError, match=message):
        write_copies(tmp_path, copies, cast(Distributed, Apart()))


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_cut_of_a_prior(shared: bool) -> None:
    settings = model_settings().model_copy(update={"prior": prior_settings(shared_adaln=shared)})
    prior = random_generator(settings).prior
    cut = weights_to_cut(prior)
    names = {re.sub(r"\d+", "N", name) for name, parameter in prior.named_parameters() if parameter in cut}
    expected = {"attention.qkv", "attention.proj", "mlp.fcN", *([] if shared else ["modulation"])}
    assert names == {f"blocks.N.{name}.weight" for name in expected}


def test_what_is_cut_of_a_tokenizer() -> None:
    tokenizer = random_generator().tokenizer
    cut = weights_to_cut(tokenizer)
    names = {name for name, parameter in tokenizer.named_parameters() if parameter in cut}
    kernels = {name for name, parameter in tokenizer.named_parameters() if parameter.ndim == 4}
    ends = {name for name in kernels if re.match(r"(encoder|decoder)\.conv_|p(re|ost)_quant|quantizer", name)}
    assert names == kernels - ends and len(ends) >= 6


def test_whole_tensors_are_their_own_slices() -> None:
    parameter = nn.Parameter(torch.ones(3, 2))
    assert own(parameter).data_ptr() == parameter.data_ptr() and not own(parameter).requires_grad
    assert own_rows(parameter) == slice(0, 3)


def test_an_older_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_torch()

    def fully_shard(_module: nn.Module, *, mesh: Any = None, reshard_after_forward: bool = True) -> None:
        """As torch 2.7 had it."""

    monkeypatch.setattr(fsdp, "fully_shard", fully_shard)
    with pytest.raises(ValueError, match=r"loop.sharding full needs torch 2.8 or newer, this is .*: update"):
        check_torch()


def test_the_classifier_has_nothing_to_shard(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loop.sharding full would have no effect, since the classifier"):
        tiny_run("classifier", tmp_path, sharding="full")


def test_a_decoder_is_not_sharded(tmp_path: Path) -> None:
    run = DecoderRun.model_validate({"loop": {"sharding": "full"}})
    _check_processes(run, Distributed(0, 1, torch.device("cpu")))
    with pytest.raises(ValueError, match=r"sharding full has not been made to work with train decoder"):
        _check_processes(run, Distributed(0, 2, torch.device("cpu")))


def test_an_estimate_says_what_is_divided() -> None:
    giga = 10**9
    memory = Memory(
        weights=4 * giga,
        gradients=4 * giga,
        moments=8 * giga,
        average=4 * giga,
        frozen=0,
        copies=0,
        activations=0,
    )
    found = Estimate(
        num_parameters=giga, memory=memory, recompute=None, other_memory=memory, cut_bytes=19_500_000_000,
        step_operations=0, peak_bytes=0, step_seconds=1.0, batch_size=1, num_steps=1,
    )  # fmt: skip
    assert describe(found)[2].startswith("of these, 19.50 GB are divided by the number of processes (loop.")
    assert not any("divided" in line for line in describe(replace(found, cut_bytes=0)))
