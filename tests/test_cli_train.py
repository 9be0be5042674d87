"""``nextscale train``: recipes of one's own, changed settings, what is printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from models_for_tests import write_pictures
from nextscale.cli import main
from nextscale.train import loop as train_loop
from nextscale.train.logs import read_log

TINY = """
[tokenizer.schedule]
sizes = [[1, 1], [2, 2], [4, 4]]
[tokenizer.tokenizer.autoencoder]
base_dim = 8
multipliers = [1, 1]
num_res_blocks = 1
norm_groups = 4
[tokenizer.tokenizer.quantizer]
vocab_size = 16
code_dim = 4
num_phis = 1
[tokenizer.loop]
batch_size = 4
num_steps = 500
[prior.prior]
depth = 1
model_dim = 16
num_heads = 2
[prior.loop]
batch_size = 4
num_steps = 500
[classifier.classifier]
image_size = 8
dims = [8, 8]
[classifier.loop]
batch_size = 4
num_steps = 500
[decoder.loop]
batch_size = 4
"""
#: What a stage is given of those before.
MORE = {
    "prior": ["--tokenizer-from", "runs/tiny-tokenizer/model"],
    "decoder": ["--init", "runs/tiny-prior/model"],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, and no curves: drawing takes longer than these trainings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_loop, "draw_curves", lambda *_: None)
    return tmp_path


def test_training_from_a_recipe_with_changes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(here / "pictures", 8, (8, 8), num_classes=2)
    (here / "tiny.toml").write_text(TINY)
    changes = [
        "--data.source",
        "pictures",
        "--loop.num_steps",
        "3",
        "--data.flip=true",
        "--ledger.fingerprint=false",
        "--loop.log_every",
        "2",
    ]
    for stage in ("tokenizer", "prior", "decoder", "classifier"):
        assert main(["train", stage, "tiny.toml", *changes, *MORE.get(stage, [])]) == 0
        out, err = capsys.readouterr()
        folder = here / "runs" / f"tiny-{stage}"
        assert err == "" and f"model: runs/tiny-{stage}/model" in out
        assert [record["step"] for record in read_log(folder / "log.jsonl") if record["kind"] == "train"] == [
            2,
            3,
        ]
        run = json.loads((folder / "run.json").read_text())
        assert run["loop"]["num_steps"] == 3 and run["data"]["flip"] is True
    assert main(["sample", "runs/tiny-prior/model", "--labels", "class 01"]) == 0
    assert main(["train", "tokenizer", "tiny.toml", *changes, "--quiet"]) == 0
    assert "going on after step 3 of 3" in capsys.readouterr().out


def test_listing_the_settings_of_a_recipe(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "prior", "cifar10-tiny", "--settings", "--loop.batch_size", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "--loop.batch_size 7   # images per step" in lines
    assert any(line.startswith("--prior.depth 5 ") for line in lines) and len(lines) > 30
    assert list(here.iterdir()) == []


def test_a_dry_run_says_what_a_run_will_take_and_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(here / "pictures", 8, (8, 8), num_classes=2)
    (here / "tiny.toml").write_text(TINY)
    before = sorted(here.rglob("*"))
    assert main(["train", "tokenizer", "tiny.toml", "--data.source", "pictures", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "--loop.num_steps 500   # steps of the whole run; the schedule is laid over them" in lines
    parameters, memory, other, operations, time = lines[-5:]
    count = int(parameters.removeprefix("parameters: ").replace(",", ""))
    assert count > 1000 and memory.startswith("memory: 0.0") and f"optimizer {8 * count / 1e9:.2f}" in memory
    assert re.fullmatch(r"memory with --recompute true: 0.0\d GB \(computed\)", other)
    assert re.fullmatch(r"operations: \S+ TFLOP a step \(computed\), \S+ TFLOP/s \(measured\)", operations)
    match = re.fullmatch(r"time: (\S+) s a step, (\S+) images/s, (\S+) hours of training .*", time)
    assert match is not None
    seconds, rate, hours = (float(value) for value in match.groups())
    assert rate == pytest.approx(4 / seconds, rel=0.3) and hours == pytest.approx(
        500 * seconds / 3600, abs=0.02
    )
    assert sorted(here.rglob("*")) == before


def test_a_dry_run_of_a_prior_keeps_no_tokens(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(here / "pictures", 40, (32, 32), num_classes=2)
    line = "train prior cifar10-tiny --init cifar10-tiny --data.source pictures --loop.batch_size 2 --dry-run"
    assert main([*line.split(), "--loop.sharding", "full"]) == 0
    output = capsys.readouterr().out
    parts = "weights (.*), gradients (.*), optimizer (.*), average (.*), tokenizer"
    found = re.search(rf"memory: .* GB \({parts}.*\nof these, (\S+) GB are divided by the num", output)
    assert found is not None
    *held, divided = map(float, found.groups())
    assert 0.8 * sum(held) < divided < sum(held) + 0.02  # each is rounded to 0.01
    assert [item.name for item in here.iterdir()] == ["pictures"]
