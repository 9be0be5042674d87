"""Model cards: what the hub reads in them, and the scores that they carry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from models_for_tests import model_settings, random_generator
from nextscale.cli import main
from nextscale.generate.card import CardScore, CardSettings, card_text, read_scores

AGAINST = {
    "scored": "samples", "count": 100, "dtype": "float32", "sampling": {"guidance": 1.5},
    "scores": {"FD-CIFAR": {"value": 12.5, "low": 11.0, "high": 14.0},
               "KID-CIFAR": {"value": 0.25, "std": 0.1}},
    "class_agreement": 0.75, "class_agreement_per_class": {"frog": 1.0},
    "reference": {"kind": "training", "source": "/home/somebody/my-pictures", "count": 150},
}  # fmt: skip


def _written(folder: Path, content: Any) -> Path:
    path = folder / "scores.json"
    path.write_text(json.dumps(content))
    return path


def test_the_hub_reads_a_card_with_scores(tmp_path: Path) -> None:
    about = read_scores(_written(tmp_path, AGAINST), about=CardSettings(name="Tiny", license="apache-2.0"))
    random_generator().save_pretrained(tmp_path / "model", about=about)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    data = card.data
    assert (data.library_name, data.license, data.model_name) == ("nextscale", "apache-2.0", "Tiny")
    assert data.pipeline_tag == "unconditional-image-generation"
    assert data.tags == ["nextscale", "image-generation", "next-scale", "class-conditional"]
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {"FD-CIFAR": 12.5, "KID-CIFAR": 0.25, "class_agreement": 0.75}
    assert {result.dataset_name for result in data.eval_results} == {"150 training images of my-pictures"}
    assert "| FD-CIFAR | 12.5 | 11 to 14 |" in card.text and 'sampling: {"guidance": 1.5}' in card.text
    assert "somebody" not in card.content


@pytest.mark.parametrize("kind", ["next_scale", "next_token", "diffusion", None])
def test_every_family_has_a_card(kind: str | None) -> None:
    sizes = ((4, 4),) if kind == "next_token" else ((1, 1), (4, 4))
    settings = model_settings(sizes=sizes, prior={"kind": kind or "next_scale"})
    card = ModelCard(card_text(settings if kind else settings.model_copy(update={"prior": None})))
    assert (kind or "image-tokenizer").replace("_", "-") in card.data.tags
    assert ("class-conditional" in card.data.tags) == bool(kind)
    assert "license" not in card.data.to_dict() and card.data.eval_results is None


def test_nothing_breaks_out_of_the_front_matter() -> None:
    name = 'a: "b"\n---\nlicense: mit | ]}'
    about = CardSettings(name=name, scores=(CardScore(name="x|y", value=1e-7),), dataset=name)
    text = card_text(model_settings(), about)
    front = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert front["model-index"][0]["name"] == name and "license" not in front
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == pytest.approx(1e-7)
    assert r"| x\|y | 1e-07 |  |" in text


def test_scores_without_a_reference(tmp_path: Path) -> None:
    alone = {
        "model": "x", "data": "/somewhere/images", "samples": {"class_agreement": 0.5, "count": 8},
        "reconstruction": {"psnr": 20.5, "usage_0": 1.0, "rFD-CIFAR": 3},
    }  # fmt: skip
    about = read_scores(_written(tmp_path, alone))
    assert {score.name: score.value for score in about.scores} == {
        "psnr": 20.5, "rFD-CIFAR": 3.0, "class_agreement": 0.5,
    }  # fmt: skip
    assert about.dataset == "images" and about.details == ("count: 8",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds no scores: give the scores.json of nextscale evaluate"),
        ({"scores": {"FID": {"value": "good"}}}, "holds no scores"),
        ({"scores": {"FID": {"value": float("nan")}}}, "holds no scores .*finite number"),
        ({"scores": {"FID": {"value": 1, "low": "a", "high": 2}}}, "holds no scores .*interval"),
    ],
)
def test_what_is_no_file_of_scores(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_scores(_written(tmp_path, content))
    with pytest.raises(ValueError, match="cannot be read"):
        read_scores(tmp_path / "nowhere.json")


def test_the_command_writes_a_model_with_its_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = _written(tmp_path, AGAINST)
    line = ["publish", "cifar10-tiny", "--scores", str(scores), "--license", "mit", "--name", "Ten classes"]
    assert main([*line, "--out", str(tmp_path / "model")]) == 0
    assert capsys.readouterr().out == f"model: {tmp_path / 'model'}\n"
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.license == "mit" and len(card.data.eval_results) == 3
    for wrong, message in (
        (line, "--out or --to"),
        ([*line, "--out", str(tmp_path / "model")], "exists and is not empty"),
        ([*line, "--out", str(tmp_path / "new"), "--private"], "--private has no effect without --to"),
        ([*line, "--out", str(tmp_path / "new"), "--license", "MIT License"], "license 'MIT License'"),
    ):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
