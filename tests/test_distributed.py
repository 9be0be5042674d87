"""Which device a process works on, modules put there, a process alone. Several: test_training_ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nextscale import distributed
from nextscale.distributed import Distributed, choose_device, joined, num_processes, place
from ranks_for_tests import finish, start


def test_the_first_gpu_or_the_cpu() -> None:
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["banana", "cuda:99", "meta:x"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=rf"device '{name}' is not available here \(.+\); try cpu"):
        choose_device(name)


def test_placing_changes_the_layout_and_no_value() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    images = torch.rand(2, 3, 3, 3)
    expected = module(images)
    assert place(module, torch.device("cpu")) is module
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.allclose(module(images), expected, atol=1e-6)


def test_a_process_by_itself_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cpu") as ranks:
        assert ranks == Distributed(0, 1, torch.device("cpu")) and ranks.is_first
        assert not torch.distributed.is_initialized()
        tensor = torch.randn(3)
        before = tensor.clone()
        ranks.sum_([tensor])
        ranks.take_first_([tensor])
        assert torch.equal(tensor, before)
        assert ranks.agree(True) and not ranks.agree(False)
        assert ranks.gather("mine") == ["mine"] and ranks.of_first({1: 2}) == {1: 2}
        ranks.check_same("anything", name="numbers")
        assert list(ranks.each(iter([1, 2]))) == [1, 2]
        error = KeyError("mine")
        with pytest.raises(KeyError) as caught, ranks.together():
            raise error
        assert caught.value is error


def test_parts_cover_a_batch() -> None:
    parts = [Distributed(rank, 3, torch.device("cpu")).part(12, accumulate=2) for rank in range(3)]
    assert [list(range(12))[part] for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(ValueError, match=r"batch_size 12 .* 8 processes x .* 1 equal .* multiple of 8"):
        Distributed(0, 8, torch.device("cpu")).part(12)


def test_what_travels_together_is_of_one_type_and_not_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_BUCKET_BYTES", 40)
    floats, integers = ([torch.zeros(n, dtype=t) for n in (6, 4, 1)] for t in (torch.float32, torch.int64))
    mixed = [item for pair in zip(floats, integers, strict=True) for item in pair]
    expected = [floats[:2], floats[2:], integers[:1], integers[1:]]
    found = list(distributed._buckets(mixed))
    assert [[id(item) for item in bucket] for bucket in found] == [
        [id(item) for item in bucket] for bucket in expected
    ]


_VARIABLES = {"RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"WORLD_SIZE": "two"},
            "WORLD_SIZE 'two' is no number of processes: start with torchrun",
        ),
        ({"RANK": None, "MASTER_PORT": None}, "RANK, MASTER_PORT is not set: start with torchrun --nproc-"),
    ],
)
def test_an_environment_that_is_incomplete(
    changes: dict[str, str | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**_VARIABLES, **changes}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message), joined("cpu"):
        pass


@pytest.mark.parametrize(
    ("device", "num_gpus", "message"),
    [
        ("cuda:1", 0, "device 'cuda:1' with several processes: give cpu, or cuda, which is one GPU for each"),
        (None, 1, "process 1 of this machine finds 1 GPUs: give torchrun --nproc-per-node 1, or nextscale"),
    ],
)
def test_a_device_for_each_process(
    device: str | None, num_gpus: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in _VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert num_processes() == 2
    with pytest.raises(ValueError, match=message), joined(device):
        pass
    assert distributed._device_of_rank("cpu") == torch.device("cpu")


_ONE_FAILS = """
import time
from nextscale.distributed import joined
with joined("cpu") as ranks:
    if ranks.rank == 1:
        time.sleep(1)
        raise ValueError("this one")
"""


@pytest.mark.slow
def test_who_is_done_does_not_wait_for_one_that_failed() -> None:
    (first, _, said), (second, _, errors) = finish(start(["-c", _ONE_FAILS]), timeout=60)
    assert (first, second, said) == (0, 1, "") and errors.strip().endswith("ValueError: this one")
