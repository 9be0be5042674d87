"""Starting from another model: what fits is taken, classes are matched by name, everything is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models_for_tests import CLASSES, model_settings, random_generator
from nextscale import Generator
from nextscale.checkpoint import read_tensors
from nextscale.train.fine_tune import start_from, with_classes
from nextscale.train.settings import PriorRun, TokenizerRun
from runs_for_tests import make_home, tiny_run, train_quietly


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three classes, a tokenizer, and a whole model of ten other classes on it."""
    home = make_home(tmp_path_factory.mktemp("fine-tune"))
    random_generator(settings=model_settings(prior=_SIZES)).save(home / "model")
    return home


_SIZES = {"depth": 2, "model_dim": 16, "num_heads": 2, "drop_path": 0.3, "class_dropout": 0.3}


def _started(run: PriorRun | TokenizerRun, folder: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The weights after a step too small to matter."""
    still = run.optimizer.model_copy(update={"base_lr": 1e-12, "weight_decay": 0.0})
    loop = run.loop.model_copy(update={"num_steps": 1, "ema_decay": 0.0})
    _, said = train_quietly(run.model_copy(update={"optimizer": still, "loop": loop}), folder)
    return read_tensors(folder / "checkpoints" / "step-00000001" / "module.safetensors"), said


def test_a_prior_of_other_classes(home: Path, tmp_path: Path) -> None:
    run = tiny_run("prior", home).model_copy(update={"tokenizer_from": "", "init": str(home / "model")})
    weights, said = _started(run, tmp_path / "run")
    given = read_tensors(home / "model" / "prior.safetensors")
    for name, value in given.items():
        if name != "class_embedding.weight":
            torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=0)
    # none of the three classes was known: all start as no class in particular
    assert weights["class_embedding.weight"].shape[0] == 4
    torch.testing.assert_close(
        weights["class_embedding.weight"], given["class_embedding.weight"][[10] * 4], atol=1e-5, rtol=0
    )
    assert any(
        line.startswith(f"from {home / 'model'}: {len(given)} tensors taken, 0 left, 0 new") for line in said
    )
    assert "classes: 0 of 3 known by name" in said
    mine, theirs = (
        read_tensors(place / "tokenizer.safetensors") for place in (tmp_path / "run/model", home / "model")
    )
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)  # the tokenizer stays as it is


def test_classes_of_a_known_name_keep_their_rows() -> None:
    table = torch.arange(33.0).view(11, 3)
    tensors = with_classes(
        {"class_embedding.weight": table, "head.bias": torch.ones(2)}, CLASSES, ["frog", "newt"]
    )
    assert tensors["class_embedding.weight"].tolist() == [
        table[6].tolist(),
        table[10].tolist(),
        table[10].tolist(),
    ]
    assert tensors["head.bias"].tolist() == [1, 1]


def test_a_tokenizer(home: Path, tmp_path: Path) -> None:
    run = tiny_run("tokenizer", home).model_copy(update={"init": str(home / "model")})
    weights, said = _started(run, tmp_path / "run")
    for name, value in read_tensors(home / "model" / "tokenizer.safetensors").items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=0)
    assert any("tensors taken, 0 left, 0 new" in line for line in said)


def test_a_resumed_run_does_not_start_again(home: Path, tmp_path: Path) -> None:
    run = tiny_run("prior", home).model_copy(update={"init": str(home / "model")})
    short = run.model_copy(update={"loop": run.loop.model_copy(update={"num_steps": 12})})
    scores, _ = train_quietly(short, tmp_path / "run")
    again, said = train_quietly(short, tmp_path / "run")
    assert again == scores and "going on after step 12 of 12" in said


def test_what_has_no_place_is_left_and_said() -> None:
    small, large = torch.nn.Linear(4, 4), torch.nn.Sequential()
    large.add_module("0", torch.nn.Linear(4, 4))
    large.add_module("1", torch.nn.Linear(4, 1))
    tensors: dict[str, Any] = {f"0.{name}": value for name, value in small.state_dict().items()}
    taken = start_from(large, {**tensors, "2.weight": torch.ones(1), "1.bias": torch.ones(2)}, source="there")
    assert taken.taken == ("0.weight", "0.bias")
    assert taken.left == ("2.weight", "1.bias") and taken.new == ("1.weight", "1.bias")
    assert taken.lines("there") == [
        "from there: 2 tensors taken, 2 left, 2 new", "left: 2.weight, 1.bias", "new: 1.weight, 1.bias"
    ]  # fmt: skip
    assert torch.equal(large[0].weight, small.weight)


def test_a_model_of_other_sizes_is_refused(home: Path, tmp_path: Path) -> None:
    Generator.load(home / "model")
    run = tiny_run("prior", home)
    wide = run.model_copy(
        update={"init": str(home / "model"), "prior": run.prior.model_copy(update={"model_dim": 32})}
    )
    with pytest.raises(ValueError, match=r"fits \d.* weights: give a model of the same sizes"):
        train_quietly(wide, tmp_path / "run")
    assert not (tmp_path / "run").exists()
