"""What a picture says of itself, and ``nextscale reproduce``, which holds it to that."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from evaluation_for_tests import outcome
from models_for_tests import model_settings, picture, random_generator
from nextscale.cli import main
from nextscale.generate import precision
from nextscale.generate.folder import model_digest
from nextscale.generate.generator import Generator
from nextscale.generate.provenance import Record, new_record, pixels_digest, png_bytes, read_png

PIXELS = numpy.asarray(picture(0, (8, 8)))
DIGEST = "0" * 64


def _record(**changes: Any) -> Record:
    given = {
        "torch_version": "2.13.0", "device": "cpu", "dtype": "torch.float32", "model_digest": DIGEST,
        "sampling": {"guidance": 1.5, "top_k": 9}, "label": 3, "class_name": "Katze \N{CAT}",
        "seed": 2**63 - 1,
    }  # fmt: skip
    return new_record(**{**given, **changes})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    random_generator().save(home / "model")
    random_generator(seed=1).save(home / "other")
    random_generator(model_settings(prior={"kind": "diffusion"})).save(home / "diffusion")
    return home


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, a mask and models."""
    monkeypatch.chdir(tmp_path)
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    picture(1, (8, 8)).save("image.png")
    picture(2, (8, 8)).save("stranger.png")
    picture(3, (4, 4)).save("small.png")
    white = numpy.zeros((8, 8), dtype=numpy.uint8)
    white[:, 4:] = 255
    Image.fromarray(white).save("right.png")
    Image.fromarray(white.T.copy()).save("below.png")
    return tmp_path


def test_a_picture_carries_its_record() -> None:
    record = _record()
    content = png_bytes(PIXELS, record)
    assert content == png_bytes(PIXELS, _record())
    pixels, read = read_png(io.BytesIO(content))
    assert (pixels == PIXELS).all() and read == record
    assert json.loads(read.as_text())["sampling"] == {"guidance": 1.5, "top_k": 9}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "carries no record of nextscale"),
        ("{", "its record is not understood: it: Invalid JSON"),
        ("[" * 5000, "its record is not understood"),
        (" " * 9000, "has 9000 characters, expected at most 8192"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"seed": "1"}, "seed: Input should be a valid integer"),
        ({"model_digest": "x"}, "model_digest: String should match pattern"),
        ({"sampling": {"guidance": 1.5, "code": "x"}}, "sampling.code: Extra inputs are not permitted"),
        ({"path": "/etc"}, "path: Extra inputs are not permitted"),
        ({"batch": 3, "row": 3}, "row 3 of a batch of 3 is none"),
        ({"format_version": 2}, "format_version: Input should be 1"),
        ({"edit": {"task": "inpaint"}}, "edit.image_digest: Field required"),
    ],
)
def test_records_from_strangers(tmp_path: Path, text: Any, message: str) -> None:
    if isinstance(text, dict):
        text = json.dumps({**json.loads(_record().as_text()), **text})
    info = PngInfo()
    if text is not None:
        info.add_itxt("nextscale", text)
    Image.fromarray(PIXELS).save(tmp_path / "x.png", pnginfo=info)
    with pytest.raises(ValueError, match=f"x.png:? .*{message}"):
        read_png(tmp_path / "x.png")


def test_damaged_files_and_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = png_bytes(PIXELS, _record())
    for number, wrong in enumerate(
        (b"", b"text", content[:60], content[:-30], content.replace(b"IDAT", b"IDAx"))
    ):
        path = tmp_path / f"{number}.png"
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=f"{number}.png (is not a readable PNG file|carries no record)"):
            read_png(path)
    picture(0, (8, 8)).save(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match=r"x\.jpg is not a readable PNG file"):
        read_png(tmp_path / "x.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(ValueError, match="is not a readable PNG file"):
        read_png(io.BytesIO(content), name="bomb")


def test_digests_know_type_and_shape() -> None:
    changed = [PIXELS, PIXELS.reshape(4, 16, 3), PIXELS.view(numpy.int8), PIXELS[::-1]]
    assert len({pixels_digest(pixels) for pixels in changed}) == 4
    assert pixels_digest(PIXELS) == pixels_digest(PIXELS.copy())


def test_samples_are_made_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "sample model --labels 2 none --per-label 3 --png --top-k 9 --guidance 2 --dtype float32 --device cpu"
    )
    assert main([*line.split(), "--out", "out"]) == main([*line.split(), "--out", "twice"]) == 0
    files = sorted(Path("out/images").iterdir())
    assert len(files) == 6
    capsys.readouterr()
    for file in files:
        assert file.read_bytes() == Path("twice/images", file.name).read_bytes()
        code, out, err = outcome(f"reproduce {file} --model model --device cpu", capsys)
        assert (code, out, err) == (0, "same: all 64 pixels\n", "")
    record = read_png(files[4])[1]
    assert (record.batch, record.row, record.label, record.class_name) == (6, 4, None, "")
    record = read_png(files[0])[1]
    assert (record.label, record.class_name, record.sampling.top_k) == (2, "bird", 9)
    assert record.model_digest == model_digest(Path("model")) and record.edit is None
    code, out, _ = outcome(f"reproduce {files[5]} --model model --device cpu --out again.png", capsys)
    assert code == 0 and Path("again.png").read_bytes() == files[5].read_bytes()
    outcome(f"reproduce {files[5]} --model model --device cpu --alone --out alone.png", capsys)
    assert (alone := read_png(Path("alone.png"))[1]).batch == 1 and alone.row == 0


def test_other_families_and_smooth_ones(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("diffusion --num-steps 4 --sampler ddpm", "model --smooth"):
        model, out = line.split()[0], line.split()[0] + "-out"
        assert main(["sample", *line.split(), "--labels", "1", "--png", "--out", out, "--device", "cpu"]) == 0
        (file,) = Path(out, "images").iterdir()
        code, said, _ = outcome(f"reproduce {file} --model {model} --device cpu", capsys)
        assert code == 0 and said.endswith("same: all 64 pixels\n")


def test_without_bfloat16_weights_are_laid_out_again(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: False)
    for dtype in ("auto", "float32"):
        line = f"sample model --labels 2 --png --dtype {dtype} --device cpu --out {dtype}"
        assert main(line.split()) == 0
    laid_out, lay_out = [], Generator.lay_out
    monkeypatch.setattr(Generator, "lay_out", lambda self: laid_out.append(self) or lay_out(self))
    for dtype, count in (("auto", 1), ("float32", 0)):
        (file,) = Path(dtype, "images").iterdir()
        laid_out.clear()
        capsys.readouterr()
        code, out, _ = outcome(f"reproduce {file} --model model --device cpu", capsys)
        assert (code, out) == (0, "same: all 64 pixels\n")
        assert read_png(file)[1].laid_out == (count == 1) and len(laid_out) == count


def test_what_was_changed_is_seen(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "model", "--labels", "2", "--png", "--out", "out", "--device", "cpu"]) == 0
    (file,) = Path("out/images").iterdir()
    pixels, record = read_png(file)
    changed = pixels.copy()
    changed[1, 2, 0] ^= 8
    changed[5, 5] ^= 1
    Path("changed.png").write_bytes(png_bytes(changed, record))
    capsys.readouterr()
    code, out, _ = outcome("reproduce changed.png --model model --device cpu", capsys)
    assert (code, out) == (1, "differs: 2 of 64 pixels, by at most 8 of 255\n")
    code, out, _ = outcome(f"reproduce {file} --model other --device cpu", capsys)
    assert code == 1 and out.startswith("another model: ")
    older = record.model_copy(update={"torch": "1.0"})
    Path("older.png").write_bytes(png_bytes(pixels, older))
    assert outcome("reproduce older.png --model model --device cpu", capsys)[1].endswith(
        "(made with torch 1.0)\n"
    )
    Path("cut.png").write_bytes(png_bytes(pixels[:6], record))
    for line, message in (
        ("cut.png --model model", "have 8 x 6 and 8 x 8 pixels"),
        ("image.png --model model", "image.png carries no record"),
        (f"{file} --model nowhere", "no model 'nowhere'"),
        (f"{file} --model model --image image.png", "is a sample, no edit: leave out --image"),
        (f"{file} --model model --mask right.png", "--mask belongs to --image"),
        (f"{file} --model model --out image.png", "image.png exists"),
    ):
        code, out, err = outcome(f"reproduce {line} --device cpu", capsys)
        assert (code, out) == (2, "") and message in err, err


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("image.png --mask right.png --label 3 --from-scale 2", "--image image.png --mask right.png"),
        ("image.png --box 0.25,0,1,0.5 --label 3 --candidates 3", "--image image.png"),
        ("image.png --task variation --from-scale 2", "--image image.png"),
        ("image.png --task outpaint --share 0.5 --place 0,1 --feather 2", "--image image.png"),
        ("small.png --task upscale --no-paste", "--image small.png"),
        ("image.png --task replace --box 0,0,1,0.5 --label 1 --hole hidden", "--image image.png"),
    ],
)
def test_edits_are_made_again(here: Path, capsys: pytest.CaptureFixture[str], line: str, given: str) -> None:
    assert main(["edit", "model", *line.split(), "--out", "out", "--device", "cpu", "--seed", "4"]) == 0
    capsys.readouterr()
    command = "reproduce out/edited.png --model model --device cpu"
    assert outcome(f"{command} {given}", capsys)[:2] == (0, "same: all 64 pixels\n")
    wrong = [("", "give the image that it was made from"), ("--image stranger.png", "is not the one")]
    if "--mask" in given:
        wrong += [
            ("--image image.png", "give the mask"),
            ("--image image.png --mask below.png", "the mask is not"),
        ]
    elif "image.png" in given:
        wrong += [("--image image.png --mask right.png", "leave the mask out")]
    for other, message in wrong if "small" not in given else wrong[:1]:
        code, out, err = outcome(f"{command} {other}", capsys)
        assert (code, out) == (2, "") and message in err, err
