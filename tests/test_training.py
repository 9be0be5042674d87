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

from models_for_tests import SIZES, model_settings, random_generator, write_pictures
from nextscale import Generator
from nextscale.checkpoint import read_tensors
from nextscale.features.classifier import load_classifier
from nextscale.train import loop as train_loop
from nextscale.train.classifier_task import ClassifierTask
from nextscale.train.logs import read_log
from nextscale.train.prior_task import PriorTask
from nextscale.train.run import train_run
from nextscale.train.settings import ClassifierRun, PriorRun, TokenizerRun
from nextscale.train.tokenizer_task import TokenizerTask

Run = TokenizerRun | PriorRun | ClassifierRun
STEPS = 12
LOOP = {
    "batch_size": 4, "num_steps": STEPS, "precision": "float32", "ema_decay": 0.8,
    "log_every": 3, "save_every": 4, "evaluate_every": 6, "evaluate_images": 3,
}  # fmt: skip
TASKS: dict[str, Any] = {"tokenizer": TokenizerTask, "prior": PriorTask, "classifier": ClassifierTask}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three classes, and a tokenizer to train priors on."""
    folder = tmp_path_factory.mktemp("training")
    write_pictures(folder / "pictures", 20, (10, 9), num_classes=3)
    settings = model_settings().model_copy(update={"prior": None})
    Generator(settings, random_generator(settings=model_settings()).tokenizer).save(folder / "given")
    return folder


def _run(kind: str, home: Path, **loop: Any) -> Run:
    common: dict[str, Any] = {
        "data": {"source": str(home / "pictures"), "enlarge": 1.25, "flip": True},
        "optimizer": {"base_lr": 0.1, "warmup_share": 0.1, "clip_norm": 1.0},
        "loop": {**LOOP, **loop},
    }
    if kind == "tokenizer":
        tokenizer = model_settings().tokenizer
        # codes are moved during the run: idle counters must survive
        return TokenizerRun(
            schedule={"sizes": SIZES}, tokenizer=tokenizer, losses={"reset_after": 3}, **common
        )
    if kind == "prior":
        prior = {"depth": 2, "model_dim": 16, "num_heads": 2, "drop_path": 0.3, "class_dropout": 0.3}
        return PriorRun(tokenizer_from=str(home / "given"), prior=prior, **common)
    common["data"] |= {"enlarge": 1.0}
    return ClassifierRun(
        classifier={"image_size": 8, "stem_dim": 8, "dims": (8, 8)}, max_shift=1, cut_out=3, **common
    )


def _train(run: Run, folder: Path, *, curves: bool = False) -> tuple[dict[str, float], list[str]]:
    """Scores, and what was said. Drawing takes longer than these trainings: most leave it out."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        if not curves:
            patch.setattr(train_loop, "draw_curves", lambda *_: None)
        return train_run(run, folder, device="cpu", say=said.append, progress=False), said


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> Callable[[str], tuple[Path, dict[str, float]]]:
    """The folder and the scores of a run that nothing interrupted; each is trained once."""
    done: dict[str, tuple[Path, dict[str, float]]] = {}

    def train(kind: str) -> tuple[Path, dict[str, float]]:
        if kind not in done:
            scores, _ = _train(_run(kind, home), home / kind, curves=True)
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
            _train(run, folder)


def _assert_same_end(folder: Path, expected: Path) -> None:
    last = Path("checkpoints") / f"step-{STEPS:08d}"
    for name in ("module", "average", "optimizer", "task"):
        mine, theirs = (read_tensors(place / last / f"{name}.safetensors") for place in (folder, expected))
        assert list(mine) == list(theirs)
        different = [key for key, value in mine.items() if not torch.equal(value, theirs[key])]
        assert not different, (name, different[:5])
    for file in (expected / "model").iterdir():
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
    run = _run(kind, home)
    _interrupt(kind, 5, monkeypatch, run, tmp_path / "run")
    _interrupt(kind, 10, monkeypatch, run, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    resumed, said = _train(run, tmp_path / "run")
    assert "going on after step 8 of 12" in said
    assert resumed == scores
    _assert_same_end(tmp_path / "run", expected)
    evaluations = [record for record in _without_times(tmp_path / "run") if record["kind"] == "evaluate"]
    assert evaluations == [record for record in _without_times(expected) if record["kind"] == "evaluate"]


def test_a_damaged_checkpoint_is_passed_over(
    home: Path, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = undisturbed("tokenizer")
    run, folder = _run("tokenizer", home), tmp_path / "run"
    _interrupt("tokenizer", 10, monkeypatch, run, folder)
    newest = folder / "checkpoints" / "step-00000008"
    content = bytearray((newest / "module.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "module.safetensors").write_bytes(content)
    _, said = _train(run, folder)
    assert any(line.startswith(f"checkpoint passed over: {newest / 'module.safetensors'}") for line in said)
    assert "going on after step 4 of 12" in said
    _assert_same_end(folder, expected)


def test_without_a_whole_checkpoint_a_run_starts_anew(
    home: Path, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = undisturbed("prior")
    run, folder = _run("prior", home), tmp_path / "run"
    _interrupt("prior", 6, monkeypatch, run, folder)
    (folder / "checkpoints" / "step-00000004" / "task.safetensors").unlink()
    _, said = _train(run, folder)
    assert sum("passed over" in line for line in said) == 1 and not any("going on" in line for line in said)
    _assert_same_end(folder, expected)


def test_a_look_that_was_cut_short_is_taken_again(
    home: Path, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are written before the averaged weights are looked at."""
    expected, _ = undisturbed("prior")
    run, folder = _run("prior", home, save_every=6), tmp_path / "run"

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PriorTask, "evaluate", fail)
        with pytest.raises(KeyboardInterrupt):
            _train(run, folder)
    assert "going on after step 6 of 12" in _train(run, folder)[1]
    assert _without_times(folder) == _without_times(expected)


def test_a_finished_run_that_is_started_again_changes_nothing(
    undisturbed: Any, home: Path, tmp_path: Path
) -> None:
    expected, scores = undisturbed("prior")
    folder = Path(shutil.copytree(expected, tmp_path / "run"))
    again, said = _train(_run("prior", home), folder)
    assert again == scores and "going on after step 12 of 12" in said
    assert read_log(folder / "log.jsonl") == read_log(expected / "log.jsonl")
    _assert_same_end(folder, expected)


# what lies in the folder


@pytest.mark.parametrize("kind", TASKS)
def test_what_a_run_leaves(kind: str, undisturbed: Any, home: Path) -> None:
    folder, scores = undisturbed(kind)
    assert json.loads((folder / "run.json").read_text()) == _run(kind, home).model_dump(mode="json")
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

    folder, scores = undisturbed("prior")
    assert {"accuracy", "scale_loss_0", "scale_loss_3"} <= set(read_log(folder / "log.jsonl")[0])
    assert {"loss", "accuracy", "scale_accuracy_3"} <= set(scores)
    assert Generator.load(folder / "model")(["class 01"], seeds=[0]).images.shape == (1, 8, 8, 3)

    folder, scores = undisturbed("classifier")
    assert load_classifier(folder / "model").settings.class_names == ("class 00", "class 01", "class 02")
    assert set(scores) == {"accuracy"} and "accuracy" in read_log(folder / "log.jsonl")[0]


def test_the_averaged_weights_are_shipped(undisturbed: Any) -> None:
    folder, _ = undisturbed("tokenizer")
    shipped = read_tensors(folder / "model" / "tokenizer.safetensors")
    last = folder / "checkpoints" / "step-00000012"
    average, module = (read_tensors(last / f"{name}.safetensors") for name in ("average", "module"))
    assert all(torch.equal(shipped[name], average[name]) for name in average)
    assert not torch.equal(average["decoder.conv_in.weight"], module["decoder.conv_in.weight"])


# what is refused


@pytest.mark.parametrize(
    ("kind", "loop", "message"),
    [
        ("prior", {"num_steps": 13}, "holds a run with loop.num_steps = 12, not 13: give the same settings"),
        ("prior", {"seed": 1}, "holds a run with loop.seed = 0, not 1"),
        ("tokenizer", {}, "holds a run with tokenizer_from = .*, not None"),
    ],
)
def test_another_run_into_the_same_folder(
    kind: str, loop: dict[str, Any], message: str, home: Path, undisturbed: Any
) -> None:
    folder, _ = undisturbed("prior")
    before = {item: item.stat().st_mtime_ns for item in folder.rglob("*")}
    with pytest.raises(ValueError, match=message):
        _train(_run(kind, home, **loop), folder)
    assert {item: item.stat().st_mtime_ns for item in folder.rglob("*")} == before


def test_a_folder_that_is_no_run(home: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is no run of nextscale: give another --out"):
        _train(_run("prior", home), tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer_from": ""}, "no tokenizer given: set --tokenizer_from"),
        ({"tokenizer_from": "nowhere"}, "no model 'nowhere'"),
        ({"sampling": {"top_k": 49}}, "top_k 49 exceeds the 48 codes of the tokenizer"),
        ({"prior": {"depth": 1, "model_dim": 5, "num_heads": 2}}, "not divisible by num_heads"),
        ({"data": {"source": ""}}, "no data source given"),
        ({"data": {"source": "nowhere"}}, "nowhere does not exist"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, home: Path, tmp_path: Path
) -> None:
    run = PriorRun.model_validate({**_run("prior", home).model_dump(), **changes})
    with pytest.raises(ValueError, match=message):
        _train(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_validation_images_of_other_classes(home: Path, tmp_path: Path) -> None:
    other = write_pictures(tmp_path / "other", 4, (9, 9), num_classes=2)
    data = {"source": str(home / "pictures"), "validation": str(other)}
    run = TokenizerRun.model_validate({**_run("tokenizer", home).model_dump(), "data": data})
    with pytest.raises(ValueError, match="both must have the same ones"):
        _train(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()
