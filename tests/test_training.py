"""Whole runs: resumed ones equal undisturbed ones to the bit, damage is passed over, folders respected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from nextscale import Generator
from nextscale.checkpoint import digest, read_tensors
from nextscale.features.classifier import load_classifier
from nextscale.models.hub import PROVENANCE
from nextscale.train import loop as train_loop
from nextscale.train.classifier_task import ClassifierTask
from nextscale.train.decoder_task import DecoderTask
from nextscale.train.diffusion_task import DiffusionTask
from nextscale.train.logs import read_log
from nextscale.train.prior_task import PriorTask
from nextscale.train.schedules import learning_rate
from nextscale.train.tokenizer_task import TokenizerTask
from runs_for_tests import STEPS, Run, make_home, tiny_run, train_quietly

TASKS: dict[str, Any] = {
    "tokenizer": TokenizerTask, "adversarial": TokenizerTask, "prior": PriorTask,
    "next_token": PriorTask, "diffusion": DiffusionTask, "decoder": DecoderTask,
    "classifier": ClassifierTask,
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> Callable[[str], tuple[Path, dict[str, float]]]:
    """The folder and the scores of a run that nothing interrupted; each is trained once."""
    done: dict[str, tuple[Path, dict[str, float]]] = {}

    def train(kind: str) -> tuple[Path, dict[str, float]]:
        if kind not in done:
            scores, _ = train_quietly(tiny_run(kind, home), home / kind, curves=True)
            done[kind] = home / kind, scores
        return done[kind]

    return train


def _interrupt(kind: str, step: int, monkeypatch: pytest.MonkeyPatch, run: Run, folder: Path) -> None:
    """Train until the process dies in the middle of a step."""
    after_step = TASKS[kind].after_step

    def fail(self: Any, number: int) -> None:
        if number == step:
            raise KeyboardInterrupt
        after_step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(TASKS[kind], "after_step", fail)
        with pytest.raises(KeyboardInterrupt):
            train_quietly(run, folder)


def _assert_same_end(folder: Path, expected: Path) -> None:
    last = Path("checkpoints") / f"step-{STEPS:08d}"
    for name in ("module", "average", "optimizer", "task"):
        mine, theirs = (read_tensors(place / last / f"{name}.safetensors") for place in (folder, expected))
        assert list(mine) == list(theirs)
        different = [key for key, value in mine.items() if not torch.equal(value, theirs[key])]
        assert not different, (name, different[:5])
    assert (folder / "model" / PROVENANCE).is_file()
    for file in (expected / "model").iterdir():
        if file.name == PROVENANCE:  # it names the run, and times
            continue
        assert (folder / "model" / file.name).read_bytes() == file.read_bytes()
    assert (folder / last / "digests.json").read_bytes() == (expected / last / "digests.json").read_bytes()


def _without_times(folder: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in record.items() if name != "images_per_second"}
        for record in read_log(folder / "log.jsonl")
    ]


@pytest.mark.parametrize("kind", TASKS)
def test_a_resumed_run_equals_an_undisturbed_one_to_the_bit(
    kind: str, home: Path, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, scores = undisturbed(kind)
    run = tiny_run(kind, home)
    _interrupt(kind, 5, monkeypatch, run, tmp_path / "run")
    _interrupt(kind, 10, monkeypatch, run, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    resumed, said = train_quietly(run, tmp_path / "run")
    assert "going on after step 8 of 12" in said
    assert resumed == scores
    _assert_same_end(tmp_path / "run", expected)
    evaluations = [record for record in _without_times(tmp_path / "run") if record["kind"] == "evaluate"]
    assert evaluations == [record for record in _without_times(expected) if record["kind"] == "evaluate"]


def test_a_damaged_checkpoint_is_passed_over(
    home: Path, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = undisturbed("tokenizer")
    run, folder = tiny_run("tokenizer", home), tmp_path / "run"
    _interrupt("tokenizer", 10, monkeypatch, run, folder)
    newest = folder / "checkpoints" / "step-00000008"
    content = bytearray((newest / "module.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "module.safetensors").write_bytes(content)
    _, said = train_quietly(run, folder)
    assert any(line.startswith(f"checkpoint passed over: {newest / 'module.safetensors'}") for line in said)
    assert "going on after step 4 of 12" in said
    _assert_same_end(folder, expected)


def test_without_a_whole_checkpoint_a_run_starts_anew(
    home: Path, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = undisturbed("prior")
    run, folder = tiny_run("prior", home), tmp_path / "run"
    _interrupt("prior", 6, monkeypatch, run, folder)
    (folder / "checkpoints" / "step-00000004" / "task.safetensors").unlink()
    _, said = train_quietly(run, folder)
    assert sum("passed over" in line for line in said) == 1 and not any("going on" in line for line in said)
    _assert_same_end(folder, expected)


def test_a_look_that_was_cut_short_is_taken_again(
    home: Path, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are written before the averaged weights are looked at."""
    expected, _ = undisturbed("prior")
    run, folder = tiny_run("prior", home, save_every=6), tmp_path / "run"

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PriorTask, "evaluate", fail)
        with pytest.raises(KeyboardInterrupt):
            train_quietly(run, folder)
    assert "going on after step 6 of 12" in train_quietly(run, folder)[1]
    assert _without_times(folder) == _without_times(expected)


def test_a_finished_run_that_is_started_again_changes_nothing(
    undisturbed: Any, home: Path, tmp_path: Path
) -> None:
    expected, scores = undisturbed("prior")
    folder = Path(shutil.copytree(expected, tmp_path / "run"))
    again, said = train_quietly(tiny_run("prior", home), folder)
    assert again == scores and "going on after step 12 of 12" in said
    assert read_log(folder / "log.jsonl") == read_log(expected / "log.jsonl")
    _assert_same_end(folder, expected)


# what lies in the folder


@pytest.mark.parametrize("kind", TASKS)
def test_what_a_run_leaves(kind: str, undisturbed: Any, home: Path) -> None:
    folder, scores = undisturbed(kind)
    expected = tiny_run(kind, home).model_dump(mode="json")
    del expected["data"]["on_bad_image"]
    del expected["loop"]["sharding"], expected["loop"]["stop_after"], expected["ledger"]
    expected.pop("compile", None)
    if "tokenizer_from" in expected:
        given = Path(expected["tokenizer_from"]) / "tokenizer.safetensors"
        expected["tokenizer_sha256"] = digest(given)
    if kind == "decoder":
        expected["init_sha256"] = digest(home / "complete" / "tokenizer.safetensors")
        expected["prior_sha256"] = digest(home / "complete" / "prior.safetensors")
    assert json.loads((folder / "run.json").read_text()) == expected
    records = read_log(folder / "log.jsonl")
    assert [(record["kind"], record["step"]) for record in records] == [
        ("train", 3), ("train", 6), ("evaluate", 6), ("train", 9), ("train", 12), ("evaluate", 12)
    ]  # fmt: skip
    assert {"loss", "gradient_norm", "lr", "images_per_second"} <= set(records[0])
    assert records[-1] == {
        "kind": "evaluate", "step": 12, **{name: float(f"{value:.6g}") for name, value in scores.items()}
    }  # fmt: skip
    checkpoints = sorted(item.name for item in (folder / "checkpoints").iterdir())
    assert checkpoints == ["step-00000008", "step-00000012"]
    assert list((folder / "tensorboard").iterdir())
    with Image.open(folder / "curves.png") as curves:
        assert curves.width > 500
    pictures = sorted(item.name for item in (folder / "pictures").iterdir()) if kind != "classifier" else []
    assert pictures == ([] if kind == "classifier" else ["step-00000006.png", "step-00000012.png"])


def test_what_each_kind_logs_and_ships(undisturbed: Any) -> None:
    folder, scores = undisturbed("tokenizer")
    assert {"l1", "l2", "codebook_loss", "idle_codes"} <= set(read_log(folder / "log.jsonl")[0])
    assert {"psnr", "usage_0", "codes_used_3"} <= set(scores)
    tokenizer = Generator.load(folder / "model")
    assert tokenizer.class_names == ("class 00", "class 01", "class 02")
    assert tokenizer.settings.prior is None and tokenizer.settings.enlarge == 1.25

    folder, _ = undisturbed("adversarial")
    records = read_log(folder / "log.jsonl")
    assert records[0]["adversarial_weight"] == 0 and records[-2]["adversarial_weight"] > 0
    assert {"adversarial", "discriminator_loss", "discriminator_gradient_norm"} <= set(records[0])
    assert set(read_tensors(folder / "model" / "tokenizer.safetensors")) == set(
        tokenizer.tokenizer.state_dict()
    )
    last = folder / "checkpoints" / "step-00000012"
    assert any("discriminator" in name for name in read_tensors(last / "module.safetensors"))
    assert set(read_tensors(last / "average.safetensors")) == set(tokenizer.tokenizer.state_dict())
    assert {"adaptive_weight", "running_sums_VC"} <= set(read_tensors(last / "task.safetensors"))

    folder, scores = undisturbed("prior")
    assert {"accuracy", "scale_loss_0", "scale_loss_3"} <= set(read_log(folder / "log.jsonl")[0])
    assert {"loss", "accuracy", "scale_accuracy_3"} <= set(scores)
    assert Generator.load(folder / "model")(["class 01"], seeds=[0]).images.shape == (1, 8, 8, 3)

    folder, scores = undisturbed("diffusion")
    assert set(scores) == {"loss", *(f"quarter_loss_{quarter}" for quarter in range(4))}
    assert Generator.load(folder / "model")(["class 01"], seeds=[0]).images.shape == (1, 8, 8, 3)

    folder, scores = undisturbed("classifier")
    assert load_classifier(folder / "model").settings.class_names == ("class 00", "class 01", "class 02")
    assert set(scores) == {"accuracy"} and "accuracy" in read_log(folder / "log.jsonl")[0]


def test_rates_and_averages_follow_the_step(
    home: Path, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run("prior", home)
    rates = [learning_rate(run.optimizer, step, num_steps=STEPS, batch_size=4) for step in range(STEPS)]
    logged = [record["lr"] for record in read_log(undisturbed("prior")[0] / "log.jsonl") if "lr" in record]
    means = [sum(rates[start : start + 3]) / 3 for start in range(0, STEPS, 3)]
    assert logged == pytest.approx(means, rel=1e-4) and len(set(logged)) > 1
    averaged: list[tuple[float, int]] = []
    monkeypatch.setattr(train_loop, "update_average", lambda *_, decay, step: averaged.append((decay, step)))
    train_quietly(tiny_run("prior", home, num_steps=3), tmp_path / "run")
    assert averaged == [(0.8, 0), (0.8, 1), (0.8, 2)]


def test_the_averaged_weights_are_shipped(undisturbed: Any) -> None:
    folder, _ = undisturbed("tokenizer")
    shipped = read_tensors(folder / "model" / "tokenizer.safetensors")
    last = folder / "checkpoints" / "step-00000012"
    average, module = (read_tensors(last / f"{name}.safetensors") for name in ("average", "module"))
    assert all(torch.equal(shipped[name], average[name]) for name in average)
    assert not torch.equal(average["decoder.conv_in.weight"], module["decoder.conv_in.weight"])
