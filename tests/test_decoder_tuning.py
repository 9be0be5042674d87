"""Tuning the decoder on what the prior draws: what it sees, what it leaves alone, that it helps, what it
refuses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models_for_tests import CLASSES, model_settings, random_generator
from nextscale import Generator
from nextscale.checkpoint import read_tensors
from nextscale.data.sources import hold_out, open_source
from nextscale.train.decoder_task import DecoderTask
from nextscale.train.settings import DecoderRun, ReconstructionLosses
from runs_for_tests import make_home, tiny_run, train_quietly


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("decoder"))


def _run(home: Path, **changes: Any) -> DecoderRun:
    run = tiny_run("decoder", home)
    assert isinstance(run, DecoderRun)
    return run.model_copy(update=changes)


def _task(run: DecoderRun) -> DecoderTask:
    source, validation = hold_out(open_source(run.data.source), run.data.validation_share)
    return DecoderTask(run, source=source, validation=validation, device=torch.device("cpu"))


def _decoded(task: DecoderTask, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The maps that the first step decodes, and the images that they are to become."""
    maps: list[torch.Tensor] = []
    post_quant = task.tokenizer.post_quant.forward

    def note(features: torch.Tensor) -> torch.Tensor:
        maps.append(features)
        return post_quant(features)

    batch = next(task.batches(range(1)))
    with monkeypatch.context() as patch:
        patch.setattr(task.tokenizer.post_quant, "forward", note)
        loss, _ = task.loss(batch)
    assert float(loss.detach()) > 0
    return maps[0], batch.items


def test_a_share_of_the_samples_has_its_last_scales_drawn(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own: dict[float, list[bool]] = {}
    for share in (0.0, 0.6, 1.0):
        task = _task(_run(home, drawn_share=share))
        maps_BChw, images = _decoded(task, monkeypatch)
        *_, real_BChw = task.tokenizer.quantizer.maps(task.tokenizer.encode(images))
        own[share] = [torch.equal(one, other) for one, other in zip(maps_BChw, real_BChw, strict=True)]
    assert all(own[0.0]) and not any(own[1.0])
    assert any(own[0.6]) and not all(own[0.6])


def test_what_is_drawn_is_what_an_edit_draws(home: Path) -> None:
    task = _task(_run(home))
    batch = next(task.batches(range(1)))
    tokens_BL, labels, seeds = task.tokenizer.encode(batch.items), batch.labels_B.tolist(), [5, 6, 7, 8]
    drawn_BL = task._draw(tokens_BL, labels, seeds)
    edited = Generator.load(home / "complete").edit(
        batch.items, labels=labels, seeds=seeds, task="variation", from_scale=2
    )
    assert torch.equal(drawn_BL[:, :5], tokens_BL[:, :5]) and not torch.equal(drawn_BL, tokens_BL)
    assert edited.tokens_BL is not None and torch.equal(drawn_BL, edited.tokens_BL)


def test_only_the_decoder_changes(home: Path, tmp_path: Path) -> None:
    scores, said = train_quietly(_run(home), tmp_path / "run")
    before, after = home / "complete", tmp_path / "run" / "model"
    old, new = (read_tensors(place / "tokenizer.safetensors") for place in (before, after))
    changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"post_quant", "decoder"}
    assert (before / "prior.safetensors").read_bytes() == (after / "prior.safetensors").read_bytes()
    assert (before / "config.json").read_bytes() == (after / "config.json").read_bytes()
    assert {"psnr", "drawn_psnr", "usage_3"} <= set(scores)
    assert any("of the decoder are tuned, no others" in line for line in said)


def test_it_brings_drawn_images_nearer(home: Path, tmp_path: Path) -> None:
    found = []
    for share in (0.0, 1.0):
        run = _run(home, drawn_share=share, losses=ReconstructionLosses())
        loop = run.loop.model_copy(update={"num_steps": 200, "evaluate_every": 1000, "save_every": 1000})
        run = run.model_copy(update={"loop": loop})
        found.append(train_quietly(run, tmp_path / f"run-{share}")[0]["drawn_psnr"])
    assert found[1] > found[0] + 0.4, found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": ""}, "no model given: set --init to the folder of a model with a prior"),
        ({"init": "given"}, "holds a tokenizer but no prior"),
        ({"init": "other-classes"}, r"has other classes \(class 00, class 01, class 02...\) than the model"),
        ({"init": "one-by-one"}, "does not draw scale by scale: give a model with a next_scale prior"),
        ({"drawn_scales": 5}, "drawn_scales 5 exceeds the 4 scales of the model"),
    ],
)
def test_refusals(home: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    names = tuple(f"class {number:02d}" for number in range(3))
    if changes.get("init") == "other-classes":
        random_generator(model_settings()).save(home / "other-classes")
        assert names != CLASSES
    if changes.get("init") == "one-by-one":
        settings = model_settings(sizes=[(4, 4)], prior={"kind": "next_token"})
        random_generator(settings.model_copy(update={"class_names": names})).save(home / "one-by-one")
    if changes.get("init"):
        changes = {"init": str(home / changes["init"])}
    with pytest.raises(ValueError, match=message):
        train_quietly(_run(home, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
