"""Exported models draw the tokens that `Generator` draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models_for_tests import SIZES, model_settings, random_generator
from nextscale import Generator
from nextscale.cli import main
from nextscale.export import ExportedGenerator, export_model, load

LABELS, SEEDS = [0, None, 2], range(3)
WAYS = (
    {},
    {"guidance": 0.0, "temperature": 0.8},
    {"guidance": 2.0, "num_unguided_scales": 1, "top_k": 9},
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    random_generator().save(folder)
    return folder


@pytest.fixture(scope="module")
def exported(model: Path) -> Path:
    export_model(model, model.parent / "programs", target="torch-export", batch=2)
    return model.parent / "programs"


def _check(exported: ExportedGenerator, generator: Generator) -> None:
    for way in WAYS:
        mine, theirs = (one(LABELS, seeds=SEEDS, **way) for one in (exported, generator))
        assert mine.tokens_BL is not None and theirs.tokens_BL is not None
        assert torch.equal(mine.tokens_BL, theirs.tokens_BL)
        torch.testing.assert_close(mine.images_BCHW, theirs.images_BCHW, rtol=0, atol=1e-4)
    images_BCHW, tokens_BL = theirs.images_BCHW, generator.tokenizer.encode(theirs.images_BCHW)
    for order in (torch.contiguous_format, torch.channels_last):
        assert torch.equal(exported.encode(images_BCHW.contiguous(memory_format=order)), tokens_BL)
    torch.testing.assert_close(
        exported.decode(tokens_BL), generator.tokenizer.decode(tokens_BL), rtol=0, atol=1e-4
    )


def test_torch_export(model: Path, exported: Path) -> None:
    _check(load(exported), Generator.load(model))


@pytest.mark.slow
@pytest.mark.timeout(900)  # a program of aoti is compiled for a quarter of a minute
@pytest.mark.parametrize(("target", "shared"), [("aoti", False), ("onnx", False), ("onnx", True)])
def test_other_formats(target: str, shared: bool, tmp_path: Path) -> None:
    sizes = ((1, 1), (2, 2))
    generator = random_generator(model_settings(sizes=sizes, prior={"shared_adaln": shared, "depth": 1}))
    generator.save(tmp_path / "model")
    out = tmp_path / "programs"
    assert main(["export", str(tmp_path / "model"), "--to", target, "--batch", "2", "--out", str(out)]) == 0
    _check(load(out), generator)


def test_weights_are_stored_once(model: Path, exported: Path) -> None:
    settings = json.loads((exported / "export.json").read_text())
    assert set(settings["programs"]) == {
        "encoder", "decoder", "condition", *(f"step{scale:02d}" for scale in range(len(SIZES)))
    }  # fmt: skip
    weights = sum(file.stat().st_size for file in (exported / "model").glob("*.safetensors"))
    assert weights == sum(file.stat().st_size for file in model.glob("*.safetensors"))
    big = random_generator(model_settings(prior={"model_dim": 64}))
    big.save(exported.parent / "big")
    export_model(exported.parent / "big", exported.parent / "more", target="torch-export", batch=2)
    for name in ("step01.pt2", "condition.pt2"):
        sizes = [(exported.parent / folder / name).stat().st_size for folder in ("programs", "more")]
        assert abs(sizes[1] - sizes[0]) < 4096, "a program grows with its weights"


def test_bfloat16(model: Path, tmp_path: Path) -> None:
    """Weights as they are, not those packed for sampling: images differ by rounding, and tokens with it."""
    export_model(model, tmp_path / "half", target="torch-export", batch=1, dtype="bfloat16")
    half, whole = load(tmp_path / "half"), Generator.load(model)
    tokens_BL = whole(LABELS, seeds=SEEDS).tokens_BL
    assert tokens_BL is not None
    torch.testing.assert_close(half.decode(tokens_BL), whole.tokenizer.decode(tokens_BL), rtol=0, atol=0.05)
    drawn = half(LABELS, seeds=SEEDS).tokens_BL
    assert drawn is not None and drawn.shape == tokens_BL.shape
    assert half.tokenizer.quantizer.codebook.weight.dtype == torch.float32


def test_a_tokenizer_alone(tmp_path: Path) -> None:
    generator = random_generator()
    Generator(generator.settings.model_copy(update={"prior": None}), generator.tokenizer).save(tmp_path / "t")
    export_model(tmp_path / "t", tmp_path / "out", target="torch-export")
    exported = load(tmp_path / "out")
    with pytest.raises(ValueError, match="a tokenizer but no prior"):
        exported([0], seeds=[0])


def test_damage_is_found(model: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"export\.json does not exist: give a folder that"):
        load(model)
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(ValueError, match=r"export\.json is not understood"):
        load(tmp_path)
    file = exported / "step01.pt2"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    with pytest.raises(ValueError, match=r"step01\.pt2 is missing or not the one that export\.json names"):
        load(exported)
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("{model} --to aoti --batch 0 --out {new}", "batch 0 is out of range: expected at least 1"),
        ("{model} --to onnx --dtype bfloat16 --out {new}", "onnx with dtype bfloat16 is not supported"),
        ("{raster} --to aoti --out {new}", "kind next_token: only next_scale ones are exported"),
        ("{model} --to aoti --out {model}", "exists and is not empty: give another --out"),
        ("nothing --to aoti --out {new}", "nothing"),
        ("{model} --to tar --out {new}", "invalid choice: 'tar'"),
    ],
)
def test_refusals(
    options: str, told: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_generator(model_settings(sizes=((3, 4),), prior={"kind": "next_token"})).save(tmp_path / "raster")
    line = options.format(model=model, raster=tmp_path / "raster", new=tmp_path / "new")
    try:
        code = main(["export", *line.split()])
    except SystemExit as stop:
        code = stop.code  # of argparse
    assert code == 2 and told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
