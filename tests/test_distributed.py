"""Which device a process works on, and modules put there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nextscale.distributed import choose_device, place


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
