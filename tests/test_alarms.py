"""Alarms: which signs raise one, and that calm trainings stay quiet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models_for_tests import SIZES, tokenizer_settings
from nextscale.train.adversary import Adversary
from nextscale.train.adversary_settings import DiscriminatorSettings
from nextscale.train.alarms import adversary_alarms, usage_alarms
from nextscale.train.discriminator import Discriminator
from nextscale.train.logs import read_log
from nextscale.train.settings import TokenizerRun
from nextscale.train.tokenizer_task import TokenizerTask
from runs_for_tests import make_home, tiny_run, train_quietly


def _run(**losses: Any) -> TokenizerRun:
    return TokenizerRun(schedule={"sizes": SIZES}, tokenizer=tokenizer_settings(), losses=losses)


def _adversary(step: int, *, weight: float = 1.0, accuracy: tuple[float, float] = (0.7, 0.7)) -> Adversary:
    settings = DiscriminatorSettings(base_dim=8, start=0.5)
    adversary = Adversary(
        Discriminator(settings, (8, 8)), settings, last_layer=nn.Parameter(torch.zeros(3, 8, 3, 3)),
        weight=0.4, num_steps=2000,
    )  # fmt: skip
    adversary.next_step.fill_(step)
    adversary.adaptive_weight.fill_(weight)
    adversary.accuracy_2 = torch.tensor(accuracy)
    return adversary


def test_scales_that_use_few_codes_are_named_with_advice() -> None:
    scores = {"psnr": 20.0, "usage_0": 0.02, "usage_1": 0.5, "usage_2": 0.099, "usage_3": 1.0}
    (line,) = usage_alarms(scores, _run(reset_after=0))
    assert line.startswith(
        "few codes: 1x1 uses 2.0%, 3x3 uses 9.9% of what it could use; try losses.reset_after"
    )
    assert "codes.ema_decay" in line and "vocab_size 12" in line
    assert "reset_after" not in usage_alarms(scores, _run(reset_after=50))[0]
    assert not usage_alarms({f"usage_{scale}": 0.1 for scale in range(4)}, _run())


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"step": 1500}, []),
        ({"step": 900, "weight": 0.0}, []),
        ({"step": 1500, "weight": 1e4}, ["adaptive weight at its upper limit 10000"]),
        ({"step": 1001, "weight": 0.015}, ["adaptive weight at its lower limit 0.015"]),
        ({"step": 1500, "accuracy": (0.99, 0.985)}, ["discriminator perfect: finds 99.0% of originals"]),
        ({"step": 1500, "accuracy": (0.99, 0.04)}, ["discriminator at chance: finds 99.0% of originals"]),
        ({"step": 1100, "accuracy": (0.99, 0.99)}, []),
        ({"step": 1500, "accuracy": (0.99, 0.6)}, []),
        (
            {"step": 1500, "weight": 2e4, "accuracy": (0.5, 0.5)},
            ["adaptive weight", "discriminator at chance"],
        ),
    ],
    ids=str,
)
def test_signs_of_the_adversarial_training(state: dict[str, Any], expected: list[str]) -> None:
    found = adversary_alarms(_adversary(**state))
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start) and "try " in line


def test_the_loop_says_and_logs_what_a_task_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run("tokenizer", make_home(tmp_path), num_steps=3, evaluate_every=2)
    monkeypatch.setattr(TokenizerTask, "alarms", lambda _, scores: [f"psnr {scores['psnr']:.2f} <- low"])
    scores, said = train_quietly(run, tmp_path / "run")
    text = f"psnr {scores['psnr']:.2f} <- low"
    assert f"step 3: {text}" in said
    alarms = [record for record in read_log(tmp_path / "run" / "log.jsonl") if record["kind"] == "alarm"]
    assert [record["step"] for record in alarms] == [2, 3]
    assert alarms[-1] == {"kind": "alarm", "step": 3, "text": text}
    monkeypatch.setattr(TokenizerTask, "alarms", lambda *_: [])
    train_quietly(run, tmp_path / "run")  # looks at step 3 again: its alarms are forgotten, earlier ones stay
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert [record["step"] for record in records if record["kind"] == "alarm"] == [2]
