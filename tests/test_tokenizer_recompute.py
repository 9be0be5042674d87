"""Computing the insides of the autoencoder's blocks again: the same gradients to the bit, less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from images import MemorySource
from memory_for_tests import saved_bytes
from models_for_tests import make_loud, model_settings, random_batch
from nextscale.train.settings import LoopSettings, TokenizerRun
from nextscale.train.step import add_gradients
from nextscale.train.tokenizer_task import TokenizerTask

#: Everything that hands gradients around the autoencoder.
ALL = {
    "codes": {"gradient": "rotation", "scale_dropout": 0.5}, "losses": {"adversarial": 0.5, "reset_after": 0},
    "discriminator": {"num_levels": 2, "start": 0.0},
}  # fmt: skip


def _task(*, recompute: bool, attention: bool = True, **settings: Any) -> TokenizerTask:
    torch.manual_seed(0)
    model = model_settings()
    tokenizer = model.tokenizer.model_dump()
    tokenizer["autoencoder"]["attention"] = attention
    run = TokenizerRun(
        schedule=model.schedule, tokenizer=tokenizer, recompute=recompute, **settings
    )  # fmt: skip
    task = TokenizerTask(run, source=MemorySource(6), validation=MemorySource(3), device=torch.device("cpu"))
    make_loud(task.tokenizer)
    return task


def _gradients(task: TokenizerTask, precision: str) -> dict[str, Tensor]:
    loop = LoopSettings(batch_size=4, accumulate=2, precision=precision)
    numbers = add_gradients(task, random_batch(4), loop)
    named = {name: item.grad for name, item in task.module.named_parameters() if item.grad is not None}
    assert len(named) == len(list(task.module.parameters()))
    return {"loss": numbers["loss"], **named}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [{}, ALL, {"attention": False}], ids=["plain", "all", "no attention"])
def test_no_gradient_changes_by_a_bit(settings: dict[str, Any], precision: str) -> None:
    plain, again = (
        _gradients(_task(recompute=recompute, **settings), precision) for recompute in (False, True)
    )
    assert plain.keys() == again.keys()
    assert [name for name in plain if not torch.equal(plain[name], again[name])] == []


def test_it_keeps_less() -> None:
    """Of a block its input stays; without it the inputs of two norms, two SiLUs and two convolutions."""
    kept = []
    for recompute in (False, True):
        task = _task(recompute=recompute)
        known = list(task.module.parameters())
        kept.append(saved_bytes(lambda task=task: task.loss(random_batch(8)), besides=known))
    assert kept[1] < 0.6 * kept[0]
