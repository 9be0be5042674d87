"""``nextscale edit``: every task with the bundled model, what is written, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy
import pytest
from PIL import Image

from evaluation_for_tests import outcome
from images import noise
from models_for_tests import model_settings, picture, random_generator
from nextscale import Generator
from nextscale.cli import main

BOX = "--box 0.25,0.25,0.75,0.75"


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edit") / "diffusion"
    random_generator(model_settings(prior={"kind": "diffusion"})).save(folder)
    return folder


@pytest.fixture
def here(diffusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures and masks."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "diffusion").symlink_to(diffusion)
    picture(1, (32, 32)).save("image.png")
    picture(2, (48, 64)).save("large.png")
    picture(3, (16, 16)).save("small.png")
    (tmp_path / "text.png").write_text("no picture")
    white = numpy.zeros((32, 32), dtype=numpy.uint8)
    Image.fromarray(white).save("black.png")
    white[:, 16:] = 255
    Image.fromarray(white).save("right.png")
    clear = noise(0, (32, 32)).convert("RGB")
    clear.paste((0, 0, 0), (0, 0, 32, 32))
    clear.putalpha(Image.fromarray(255 - white))
    clear.save("clear.png")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    return tmp_path


def _edit(line: str) -> tuple[numpy.ndarray, dict]:
    """The picture and its record."""
    assert main(["edit", "cifar10-tiny", *line.split(), "--dtype", "float32", "--out", "out"]) == 0
    return numpy.asarray(Image.open("out/edited.png")), json.loads(Path("out/settings.json").read_text())


def test_a_hole(here: Path) -> None:
    image = numpy.asarray(Image.open("image.png"))
    edited, record = _edit(f"image.png {BOX} --label ship --seed 3")
    assert edited.shape == (32, 32, 3)
    outside = numpy.ones((32, 32), dtype=bool)
    outside[8:24, 8:24] = False
    assert (edited[outside] == image[outside]).all() and (edited[~outside] != image[~outside]).any()
    assert (record["label"], record["seed"], record["task"]) == ("ship", 3, "inpaint")
    assert sorted(item.name for item in Path("out").iterdir()) == [
        "comparison.png", "edited.png", "settings.json",
    ]  # fmt: skip
    keep = outside.astype(numpy.float32)
    same = Generator.load("cifar10-tiny").edit(image, mask=keep, labels=["ship"], seeds=[3])
    assert (same.images[0] == edited).all()


@pytest.mark.parametrize("mask", ["right.png", "clear.png"])
def test_white_or_transparent_is_generated(here: Path, mask: str) -> None:
    edited, _ = _edit(f"image.png --mask {mask}")
    image = numpy.asarray(Image.open("image.png"))
    assert (edited[:, :16] == image[:, :16]).all() and (edited[:, 16:] != image[:, 16:]).any()


@pytest.mark.parametrize(
    "line",
    [
        f"image.png --task replace --label frog {BOX} --hole hidden --feather 0 --guidance 1 --top-k 5",
        f"large.png {BOX} --no-paste --from-scale 3",
        "large.png --task outpaint --share 0.75 --place 0,1 --label 3",
        "image.png --task variation --from-scale 3",
        "small.png --task upscale --label cat",
    ],
)
def test_every_task(here: Path, line: str) -> None:
    edited, record = _edit(line)
    assert edited.shape == (32, 32, 3) and edited.std() > 1
    assert len(numpy.asarray(Image.open("out/comparison.png"))) > 128
    assert record["best_by"] is None and record["dtype"] == "float32"


@pytest.mark.parametrize("by", ["", "--best-by classifier"])
def test_the_best_candidate(here: Path, by: str) -> None:
    edited, record = _edit(f"image.png {BOX} --label ship --candidates 3 {by}")
    scores = [candidate["score"] for candidate in record["candidates"]]
    assert len(set(scores)) == 3 and record["best_by"] == (by.split() or ["likelihood"])[-1]
    best = record["candidates"][int(numpy.argmax(scores))]["seed"]
    assert record["seed"] == best and record["candidates"][0]["seed"] == 0
    assert numpy.asarray(Image.open("out/candidates.png")).shape[1] > 3 * 128
    Path("out").rename("first")
    alone, _ = _edit(f"image.png {BOX} --label ship --seed {best}")
    assert (alone == edited).all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nowhere image.png " + BOX, "no model 'nowhere'"),
        ("cifar10-tiny nowhere.png " + BOX, "no image 'nowhere.png'"),
        ("cifar10-tiny text.png " + BOX, "text.png"),
        ("cifar10-tiny image.png", "--task inpaint needs --mask or --box, one of them"),
        ("cifar10-tiny image.png --mask right.png " + BOX, "--mask or --box, one of them"),
        ("cifar10-tiny image.png --task variation " + BOX, "--task variation takes no --mask and no --box"),
        ("cifar10-tiny image.png --box 0,0,1", "--box '0,0,1': expected y0,x0,y1,x1"),
        ("cifar10-tiny image.png --box 0.5,0,0.2,1", "box 0.5,0,0.2,1 is none"),
        ("cifar10-tiny large.png --mask right.png", "has 32 x 32 pixels, large.png has 64 x 48"),
        ("cifar10-tiny image.png --mask black.png", "is black all over: make white what shall be generated"),
        ("cifar10-tiny image.png --task replace " + BOX, "--task replace needs --label"),
        ("cifar10-tiny image.png --label shipp " + BOX, "unknown class 'shipp'.*did you mean 'ship'"),
        ("cifar10-tiny image.png --candidates 0 " + BOX, "--candidates 0 must be at least 1"),
        ("cifar10-tiny image.png --best-by likelihood " + BOX, "needs several --candidates"),
        ("cifar10-tiny image.png --candidates 2 --best-by classifier " + BOX, "needs --label"),
        ("cifar10-tiny image.png --task upscale", "needs an image smaller than the model's 32 x 32 pixels"),
        ("cifar10-tiny image.png --task outpaint --share 1", "share 1.0: Input should be less than 1"),
        ("cifar10-tiny image.png --task outpaint --place 1", "--place '1': expected y,x"),
        ("cifar10-tiny image.png --share 0.5 " + BOX, "share would have no effect on task inpaint"),
        ("cifar10-tiny image.png --from-scale 9 " + BOX, "from_scale 9 is out of range: expected 0 to 4"),
        ("cifar10-tiny image.png --seed -1 " + BOX, "seed -1 must be a whole number"),
        ("cifar10-tiny image.png --top-k 9999 " + BOX, "top_k 9999 is out of range"),
        ("cifar10-tiny image.png --no-paste --feather 3 " + BOX, "feather 3 would have no effect"),
        ("cifar10-tiny image.png --out full " + BOX, "full exists and is not empty"),
        ("diffusion image.png " + BOX, "the prior is of kind diffusion: use a next_scale model"),
    ],
)  # fmt: skip
def test_refusals(here: Path, capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
    before = sorted(here.iterdir())
    code, out, err = outcome(f"edit {line}", capsys)
    assert (code, out) == (2, "")
    assert err.startswith("nextscale: ") and err.endswith("\n") and err.count("\n") == 1
    assert re.search(message, err), err
    assert sorted(here.iterdir()) == before and len(list((here / "full").iterdir())) == 1
