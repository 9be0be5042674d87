"""The commands, on a tiny model: what they write, print and leave alone."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from images import encoded
from models_for_tests import CLASSES, model_settings, picture, random_generator, write_pictures
from nextscale import Generator
from nextscale.cli import main
from nextscale.cli.parser import build_parser
from nextscale.generate.request import Sampling


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of 32 x 32 pixels, those of the bundled classifier."""
    folder = tmp_path_factory.mktemp("cli") / "model"
    random_generator(model_settings(levels=4, sampling={"guidance": 1.0, "top_k": 20})).save(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _pixels(file: Path) -> numpy.ndarray:
    with Image.open(file) as image:
        return numpy.asarray(image)


# help


def test_help_is_instant() -> None:
    """Processor time of the best of three, since other work on the machine must not decide."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "nextscale.cli", "--help"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5
    assert all(
        f"\n    {name}" in result.stdout
        for name in ("demo", "train", "tokenize", "sample", "evaluate", "convert", "statistics")
    )


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "data",
        "train",
        "tokenize",
        "sample",
        "reconstruct",
        "convert",
        "evaluate",
        "statistics",
        "likelihood",
        "neighbours",
    ],
)
def test_every_option_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: nextscale {command}" in capsys.readouterr().out
    (commands,) = (action for action in build_parser()._actions if isinstance(action.choices, dict))
    assert commands.choices is not None
    assert all(action.help for action in commands.choices[command]._actions)  # type: ignore[index]


# sample


def test_sampling_all_classes(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(model)]) == 0
    assert capsys.readouterr().out == "10 images: samples/grid.png\n"
    assert sorted(item.name for item in (here / "samples").iterdir()) == ["grid.png", "settings.json"]
    assert _pixels(here / "samples" / "grid.png").shape == (3 * 66 + 2, 4 * 66 + 2, 3)
    record = json.loads((here / "samples" / "settings.json").read_text())
    assert record["labels"] == list(CLASSES) and record["seeds"] == list(range(10))
    expected = {"guidance": 1.0, "top_k": 20, "top_p": 1.0, "temperature": 1.0}
    assert record["sampling"] == {**expected, "num_unguided_scales": 0, "ssg": 0.0}


def test_sampling_names_numbers_and_none(model: Path, here: Path) -> None:
    which = ["--labels", "frog", "3", "none", "--per-label", "2", "--seed", "5", "--batch", "4"]
    how = ["--guidance", "2", "--top-k", "0", "--top-p", "0.9", "--temperature", "0.8"]
    how += ["--num-unguided-scales", "2", "--ssg", "0.3"]
    assert main(["sample", str(model), *which, *how, "--png", "--npz", "--out", "deep/out"]) == 0
    out = here / "deep" / "out"
    names = [
        f"{i:05d}_{name}_seed{5 + i}.png" for i, name in enumerate(["frog"] * 2 + ["cat"] * 2 + ["none"] * 2)
    ]
    assert sorted(item.name for item in (out / "images").iterdir()) == names
    with numpy.load(out / "samples.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert images.shape == (6, 32, 32, 3) and images.dtype == numpy.uint8
    assert labels.tolist() == [6, 6, 3, 3, 10, 10]
    assert all(
        numpy.array_equal(_pixels(out / "images" / name), image)
        for name, image in zip(names, images, strict=True)
    )
    sampling: Sampling = {
        "guidance": 2.0, "top_k": 0, "top_p": 0.9, "temperature": 0.8, "num_unguided_scales": 2, "ssg": 0.3,
    }  # fmt: skip
    fast = Generator.load(model, dtype="auto")
    expected = fast([6, 6, 3, 3, None, None], seeds=range(5, 11), **sampling)
    assert numpy.array_equal(images, expected.images)
    assert _pixels(out / "grid.png").shape == (3 * 66 + 2, 2 * 66 + 2, 3)
    record = json.loads((out / "settings.json").read_text())
    assert record["sampling"] == sampling and record["dtype"] == str(fast.dtype).removeprefix("torch.")
    assert record["labels"][-1] == "none" and not record["smooth"]


def test_sampling_with_seeds_of_ones_own_and_smooth(model: Path, here: Path) -> None:
    given = ["sample", str(model), "--labels", "1", "2", "--seeds", "9", "4", "--npz", "--dtype", "float32"]
    assert main([*given, "--out", "plain"]) == 0 and main([*given, "--smooth", "--out", "smooth"]) == 0
    arrays = [numpy.load(here / name / "samples.npz")["arr_0"] for name in ("plain", "smooth")]
    assert numpy.array_equal(arrays[0], Generator.load(model)([1, 2], seeds=[9, 4]).images)
    assert numpy.array_equal(arrays[1], Generator.load(model)([1, 2], seeds=[9, 4], smooth=True).images)
    assert json.loads((here / "smooth" / "settings.json").read_text())["smooth"]


# reconstruct


def _write_parquet(file: Path, count: int) -> None:
    rows = [
        {"img": {"bytes": encoded(picture(i, (32, 32))), "path": None}, "label": i % 10} for i in range(count)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def test_reconstructing_files_a_folder_and_a_parquet_file(
    model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(here / "pictures", 5, (40, 33), num_classes=2)
    _write_parquet(here / "some.parquet", 4)
    one = here / "pictures" / "class 00" / "000.png"
    for out, given, count in (
        ("files", [str(one), str(one.with_name("002.png"))], 2),
        ("folder", ["pictures"], 5),
        ("few", ["pictures", "--limit", "3"], 3),
        ("parquet", ["some.parquet"], 4),
        ("mixed", [str(one), "some.parquet"], 5),
    ):
        assert main(["reconstruct", str(model), *given, "--out", out]) == 0
        assert f"{count} images, mean PSNR " in capsys.readouterr().out
        assert sorted(item.name for item in (here / out).iterdir()) == ["scores.json", "side_by_side.png"]
        scores = json.loads((here / out / "scores.json").read_text())
        assert len(scores["psnr"]) == count
        assert scores["psnr_mean"] == pytest.approx(sum(item["psnr"] for item in scores["psnr"]) / count)
    assert _pixels(here / "files" / "side_by_side.png").shape[2] == 3
    names = [item["image"] for item in json.loads((here / "few" / "scores.json").read_text())["psnr"]]
    assert [Path(name).name for name in names] == ["000.png", "004.png", "003.png"]  # spread over the folder


# demo


def test_the_demo_page(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--model", str(model)]) == 0
    assert "80 images, " in capsys.readouterr().out
    page = (here / "demo" / "index.html").read_text()
    pictures = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert len(pictures) == 12 and all((here / "demo" / name).is_file() for name in pictures)
    assert all(f">{name}<" in page for name in CLASSES) and "1x1, 2x2, 3x3, 4x4 cells" in page
    assert _pixels(here / "demo" / "class-3.png").shape == (68, 8 * 66 + 2, 3)
    assert _pixels(here / "demo" / "strip.png").shape[1] == 4 * (128 + 2) + 2
    record = json.loads((here / "demo" / "demo.json").read_text())
    assert record["model"] == str(model) and "images per second" in record["times"]
    first = _pixels(here / "demo" / "grid.png")
    assert main(["demo", "--model", str(model)]) == 0  # its own folder may be replaced
    assert numpy.array_equal(_pixels(here / "demo" / "grid.png"), first)
    assert sorted(item.name for item in here.iterdir()) == ["demo"]


# evaluate


def test_evaluating_samples_and_images(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, name in enumerate(CLASSES):
        (here / "data" / name).mkdir(parents=True)
        picture(index, (32, 32)).save(here / "data" / name / "one.png")
    given = [
        "--data",
        "data",
        "--limit",
        "7",
        "--num-samples",
        "20",
        "--seed",
        "3",
        "--top-k",
        "5",
        "--out",
        "scores",
    ]
    assert main(["evaluate", str(model), *given]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((here / "scores" / "scores.json").read_text())
    assert {"psnr", "usage_0"} <= set(printed["reconstruction"])
    assert {"loss", "accuracy"} <= set(printed["prediction"])
    samples = printed["samples"]
    assert (samples["count"], samples["first_seed"], samples["sampling"]["top_k"]) == (20, 3, 5)
    assert samples["class_agreement"] == pytest.approx(
        sum(samples["class_agreement_per_class"].values()) / 10
    )
    assert list(samples["class_agreement_per_class"]) == list(CLASSES)
    assert _pixels(here / "scores" / "samples.png").shape[1] == 10 * 66 + 2


def test_evaluating_fewer_samples_than_classes(
    model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(model), "--num-samples", "4"]) == 0
    samples = json.loads(capsys.readouterr().out)["samples"]
    assert list(samples["class_agreement_per_class"]) == list(CLASSES[:4])
    assert list(here.iterdir()) == []


# the process around the commands


def test_as_a_process_of_its_own(model: Path, here: Path) -> None:
    command = [sys.executable, "-m", "nextscale.cli"]
    fine = subprocess.run(
        [*command, "sample", str(model), "--labels", "1"], capture_output=True, text=True, check=False
    )
    assert (fine.returncode, fine.stdout, fine.stderr) == (0, "1 images: samples/grid.png\n", "")
    wrong = subprocess.run(
        [*command, "train", "prior", "nothing"], capture_output=True, text=True, check=False
    )
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("nextscale: ") and wrong.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "nextscale.cli", "train", "prior", "cifar10-tiny", "--settings"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_user_who_interrupts(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Generator, "load", interrupt)
    assert main(["sample", str(model), "--out", "never"]) == 130
    assert capsys.readouterr().err == "nextscale: stopped; run the same command again to go on\n"
