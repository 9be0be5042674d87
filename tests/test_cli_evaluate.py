"""``nextscale evaluate`` against references: samples, reconstructions, images, protocols, sweeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from evaluation_for_tests import QUICK, evaluate, link_all, make_evaluation_home, save_npz
from models_for_tests import CLASSES, random_generator
from nextscale import Generator
from nextscale.cli import main
from nextscale.evaluate.agreement import class_agreement
from nextscale.evaluate.frechet import frechet_distance
from nextscale.evaluate.scores import moments_of
from nextscale.evaluate.similarity import psnr, ssim
from nextscale.features.classifier import Classifier, load_classifier, save_classifier
from nextscale.features.extractor import load_extractor
from nextscale.features.settings import ClassifierSettings
from nextscale.pixels import to_model, to_uint8

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_evaluation_home(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder from which all of it is seen."""
    monkeypatch.chdir(tmp_path)
    link_all(home, tmp_path)
    return tmp_path


def _pixels(folder: Path) -> numpy.ndarray:
    return numpy.stack([numpy.asarray(Image.open(file)) for file in sorted(folder.rglob("*.png"))])


def _distance(images: numpy.ndarray, others: numpy.ndarray) -> float:
    """By hand, of whole arrays."""
    cifar = load_extractor("cifar")
    return frechet_distance(*(moments_of(cifar(side)["pool"].numpy()) for side in (images, others)))


def test_samples_against_training_images(here: Path, capsys: Capture) -> None:
    line = f"model --num-samples 25 --seed 3 --top-k 5 --batch 10 {QUICK}"
    result, err = evaluate(f"{line} --reference train.npz", capsys)
    samples = Generator.load("model")(
        [i % 10 for i in range(25)], seeds=range(3, 28), guidance=1.0, top_k=5
    ).images
    expected = _distance(samples, _pixels(here / "train"))
    assert result["scores"]["FD-CIFAR"]["value"] == pytest.approx(expected, rel=1e-4)
    assert set(result["scores"]) == {
        "FD-CIFAR", "IS-CIFAR", "KID-CIFAR", "precision-CIFAR", "recall-CIFAR"
    }  # fmt: skip
    assert result["samples"] == {
        "count": 25, "first_seed": 3, "last_seed": 27, "dtype": "float32",
        "sampling": {
            "guidance": 1.0, "top_k": 5, "top_p": 1.0, "temperature": 1.0, "num_unguided_scales": 0,
            "ssg": 0.0,
        },
    }  # fmt: skip
    assert len(result["model"]["digest"]) == 64 and set(result["class_agreement_per_class"]) == set(CLASSES)
    assert (result["reference"]["kind"], result["reference"]["count"]) == ("training", 30)
    assert [text.split(" for ")[0] for text in result["warnings"]] == ["25 images", "30 reference images"]
    assert err.count("nextscale: warning: ") == 2
    from_images, _ = evaluate(f"{line} --reference train --reference-kind training", capsys)
    assert from_images["scores"]["FD-CIFAR"]["value"] == pytest.approx(expected, rel=1e-4)
    assert from_images["reference"]["source"] == "train"


def test_samples_made_in_bfloat16(here: Path, capsys: Capture) -> None:
    line = f"model --reference train.npz --num-samples 25 --dtype bfloat16 {QUICK}"
    result, _ = evaluate(line, capsys)
    samples = Generator.load("model", dtype="bfloat16")([i % 10 for i in range(25)], seeds=range(25))
    assert result["samples"]["dtype"] == "bfloat16"
    expected = _distance(samples.images, _pixels(here / "train"))
    assert result["scores"]["FD-CIFAR"]["value"] == pytest.approx(expected, rel=1e-3)


def test_batches_change_nothing(here: Path, capsys: Capture) -> None:
    scores = [
        evaluate(f"model --reference train.npz --num-samples 70 --batch {batch} {QUICK}", capsys)[0]["scores"]
        for batch in (50, 64)
    ]
    assert scores[0].keys() == scores[1].keys()
    for name, score in scores[0].items():
        assert scores[1][name]["value"] == pytest.approx(score["value"], rel=1e-4), name


def test_samples_of_another_size_before_their_own_classifier(here: Path, capsys: Capture) -> None:
    random_generator().save(here / "model8")
    settings = ClassifierSettings(image_size=8, dims=(8,), class_names=CLASSES)
    save_classifier(here / "judge", Classifier(settings), dtype=torch.float32)
    command = "statistics train --size 8 --kind training --features classifier --weights judge --out 8.npz"
    assert main(command.split()) == 0
    capsys.readouterr()
    line = f"model8 --reference 8.npz --num-samples 20 --weights judge --class-agreement {QUICK}"
    result, _ = evaluate(line, capsys)
    assert {"FD-CLASSIFIER", "precision-CLASSIFIER"} <= set(result["scores"])
    pixels = Generator.load("model8")([i % 10 for i in range(20)], seeds=range(20)).images
    agreed = class_agreement(pixels, [i % 10 for i in range(20)], load_classifier(here / "judge"))
    assert result["class_agreement"] == pytest.approx(agreed.mean())
    numpy.savez(here / "samples.npz", pixels, numpy.arange(20) % 10)
    line = f"samples.npz --reference 8.npz --weights judge --class-agreement {QUICK}"
    assert evaluate(line, capsys)[0]["class_agreement"] == pytest.approx(agreed.mean())


def test_reconstructions_against_validation_images(here: Path, capsys: Capture) -> None:
    line = f"half --data test --reference test --reference-kind validation {QUICK}"
    result, _ = evaluate(line, capsys)
    tokenizer, originals = Generator.load("half").tokenizer, _pixels(here / "test")
    decoded = to_uint8(tokenizer.decode(tokenizer.encode(to_model(originals))))
    assert set(result["scores"]) == {"rFD-CIFAR"}
    assert result["scores"]["rFD-CIFAR"]["value"] == pytest.approx(_distance(decoded, originals), rel=1e-4)
    assert result["reconstruction"]["psnr"] == pytest.approx(psnr(originals, decoded).mean())
    assert result["reconstruction"]["ssim"] == pytest.approx(ssim(originals, decoded).mean())
    assert 0 < result["reconstruction"]["usage_0"] <= 1 and "class_agreement" in result
    few, _ = evaluate(f"{line} --limit 5 --out few", capsys)
    assert few["data"]["count"] == 5 and few["reference"]["count"] == 20
    with Image.open(here / "few" / "images.png") as sheet:  # pairs, enlarged to 64 pixels
        assert sheet.size == (10 * (128 + 2) + 2, 64 + 4)


def test_images_from_a_file(here: Path, capsys: Capture) -> None:
    images = save_npz(here / "a.npz", 12, seed=500, labels=True)
    result, _ = evaluate(f"a.npz --reference train.npz {QUICK}", capsys)
    expected = _distance(images, _pixels(here / "train"))
    assert result["scores"]["FD-CIFAR"]["value"] == pytest.approx(expected, rel=1e-4)
    assert result["images"] == {"source": "a.npz", "count": 12} and "class_agreement" not in result
    demanded, _ = evaluate(f"a.npz --reference train.npz --class-agreement {QUICK}", capsys)
    assert 0 <= demanded["class_agreement"] <= 1 and demanded["scores"] == result["scores"]
    assert evaluate("a.npz --reference train.npz --resamples 0", capsys)[0]["scores"]["FD-CIFAR"].keys() == {
        "value"
    }


def test_images_as_reference(here: Path, capsys: Capture) -> None:
    """A file of images is a reference like any other source of them."""
    images = save_npz(here / "a.npz", 12)
    result, _ = evaluate(f"test --reference a.npz --reference-kind training {QUICK}", capsys)
    expected = _distance(_pixels(here / "test"), images)
    assert result["scores"]["FD-CIFAR"]["value"] == pytest.approx(expected, rel=1e-4)
    assert result["reference"]["class_names"] is None


def test_samples_in_a_file_score_as_the_model_does(here: Path, capsys: Capture) -> None:
    how = ["--per-label", "2", "--batch", "7", "--dtype", "float32"]
    assert main(["sample", "model", *how, "--out", "x.npz"]) == 0
    assert capsys.readouterr().out == "20 images: x.npz\n"
    with numpy.load(here / "x.npz", allow_pickle=False) as arrays:
        assert arrays["arr_0"].shape == (20, 32, 32, 3) and arrays["arr_0"].dtype == numpy.uint8
        assert arrays["arr_1"].tolist() == [label for label in range(10) for _ in range(2)]
        assert json.loads(str(arrays["settings"]))["seeds"] == list(range(20))
        images = arrays["arr_0"]
    labels = [label for label in range(10) for _ in range(2)]
    whole = Generator.load("model")(labels, seeds=range(20)).images
    assert numpy.abs(images.astype(int) - whole).max() <= 1  # batches round otherwise
    result, _ = evaluate(f"x.npz --reference train.npz {QUICK}", capsys)
    assert result["scores"]["FD-CIFAR"]["value"] == pytest.approx(
        _distance(images, _pixels(here / "train")), rel=1e-4
    )


def test_the_wrong_kind_of_reference_if_it_is_asked_for(here: Path, capsys: Capture) -> None:
    line = f"model --num-samples 4 --reference test --reference-kind validation {QUICK}"
    result, err = evaluate(f"{line} --any-reference", capsys)
    assert "scored against validation images, though samples are usually scored against training" in err
    assert result["warnings"][0] in err and result["reference"]["kind"] == "validation"


def test_jpegs_are_warned_of(here: Path, capsys: Capture) -> None:
    (here / "lossy").mkdir()
    for index, file in enumerate(sorted((here / "test").rglob("*.png"))[:4]):
        with Image.open(file) as image:
            image.save(here / "lossy" / f"{index}.{'jpg' if index else 'png'}")
    result, err = evaluate(f"lossy --reference train.npz {QUICK}", capsys)
    assert "75% of the images looked at are JPEGs, whose losses change scores" in err
    assert any("JPEGs" in warning for warning in result["warnings"])


def test_a_folder_is_finished_once_and_goes_on_where_it_was_killed(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextscale.evaluate.measure._PART", 8)
    line = f"model --num-samples 20 --reference train --reference-kind training --out out {QUICK}"
    calls = []
    original = Generator.__call__

    def counted(self: Generator, labels: list[int], **options: object) -> object:
        calls.append(len(labels))
        if sum(calls) > 12:  # one to try the settings, a part of eight, and then
            raise KeyboardInterrupt
        return original(self, labels, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "__call__", counted)
        assert main(["evaluate", *line.split()]) == 130
    capsys.readouterr()
    assert [item.name for item in sorted((here / "out" / "parts").iterdir())] == ["0000000.npz"]
    assert not (here / "out" / "scores.json").exists()
    calls.append(-100)
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "__call__", counted)
        result, _ = evaluate(line, capsys)
    assert calls[-3:] == [1, 8, 4]  # the first part was not made again
    names = sorted(item.name for item in (here / "out").iterdir())
    assert names == [".lock", "images.png", "reference.npz", "run.json", "scores.json"]
    assert json.loads((here / "out" / "scores.json").read_text()) == result
    assert result["scores"] == evaluate(line.replace("out out", "out anew"), capsys)[0]["scores"]
    assert evaluate(line, capsys)[0] == result and calls[-1] == 4
    again, _ = evaluate(
        line.replace("train --reference-kind training", "out/reference.npz --seed 0").replace(
            "out out", "out b"
        ),
        capsys,
    )
    assert again["scores"] == result["scores"]


def test_a_sweep(here: Path, capsys: Capture) -> None:
    sweeps = "--sweep guidance=0:2:2 --sweep top_k=1,9"
    line = f"evaluate model --num-samples 4 --reference train.npz {sweeps} --out s {QUICK}"
    assert main(line.split()) == 0
    out = capsys.readouterr().out
    assert out.startswith("| guidance | top_k | FD-CIFAR |") and out.endswith("4 points: s/sweep.png\n")
    assert out.startswith((here / "s" / "sweep.md").read_text())
    rows = json.loads((here / "s" / "sweep.json").read_text())
    assert [row["point"] for row in rows] == [{"guidance": g, "top_k": k} for g in (0.0, 2.0) for k in (1, 9)]
    for row in rows:
        assert row["result"]["samples"]["sampling"] | row["point"] == row["result"]["samples"]["sampling"]
    single, _ = evaluate(
        f"model --num-samples 4 --reference train.npz --guidance 2 --top-k 9 {QUICK}", capsys
    )
    assert rows[3]["result"] == single
    with Image.open(here / "s" / "sweep.png") as picture:
        assert picture.format == "PNG"
    points = here / "s" / "points"
    (points / "guidance=2,top_k=9" / "scores.json").unlink()
    kept = points / "guidance=0,top_k=1" / "scores.json"
    kept.write_text(kept.read_text().replace('"count": 4', '"count": 5'))  # shows that it is not made again
    assert main(line.split()) == 0 and capsys.readouterr().out == out
    again = json.loads((here / "s" / "sweep.json").read_text())
    assert again[3] == rows[3] and again[0]["result"]["samples"]["count"] == 5


def test_a_protocol_fixes_everything_and_is_printed_in_full(here: Path, capsys: Capture) -> None:
    (here / "mine.toml").write_text(
        'description = "mine"\nnum_classes = 10\nsamples_per_class = 1\nfirst_seed = 7\ntop_k = 4\n'
        'features = "cifar"\nreference_kind = "training"\n'
    )
    result, _ = evaluate(f"model --protocol mine.toml --reference train.npz --num-samples 10 {QUICK}", capsys)
    assert result["protocol"]["name"] == "mine.toml" and result["protocol"]["samples_per_class"] == 1
    assert result["protocol"]["rounding"] == "uint8, to the nearest"
    plain, _ = evaluate(
        f"model --num-samples 10 --seed 7 --top-k 4 --features cifar --reference train.npz {QUICK}", capsys
    )
    assert result["scores"] == plain["scores"] and result["samples"] == plain["samples"]
