"""Model folders: what is saved comes back, and what is not a model is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models_for_tests import SIZES, model_settings, random_generator
from nextscale import Generator
from nextscale.models import find_model

FILES = ["README.md", "config.json", "prior.safetensors", "tokenizer.safetensors"]


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator(model_settings(sampling={"guidance": 1.5, "top_k": 30}))


@pytest.fixture(scope="module")
def saved(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    generator.save(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A folder that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_what_is_saved_comes_back_to_the_bit(generator: Generator, saved: Path) -> None:
    assert sorted(item.name for item in saved.iterdir()) == FILES
    loaded = Generator.load(saved)
    for mine, theirs in ((generator.tokenizer, loaded.tokenizer), (generator.prior, loaded.prior)):
        assert theirs.training is False
        assert not any(parameter.requires_grad for parameter in theirs.parameters())
        tensors = theirs.state_dict()
        assert list(tensors) == list(mine.state_dict())
        assert all(torch.equal(value, tensors[name]) for name, value in mine.state_dict().items())
    assert loaded.settings.sampling == generator.settings.sampling
    assert loaded.class_names == generator.class_names
    assert torch.equal(loaded([3], seeds=[4]).images_BCHW, generator([3], seeds=[4]).images_BCHW)


def test_saving_a_loaded_model_changes_no_byte(saved: Path, tmp_path: Path) -> None:
    Generator.load(saved).save(tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes(), name


def test_the_choice_of_phis_is_kept(saved: Path) -> None:
    """Ties in it are decided by rounding, so a reader must not compute it anew."""
    content = json.loads((saved / "config.json").read_text())
    assert content["tokenizer"]["quantizer"]["phi_of_scale"] == [0, 1, 2, 3]


def test_half_precision_halves_the_files_and_loads(generator: Generator, saved: Path, tmp_path: Path) -> None:
    generator.save(tmp_path / "half", dtype=torch.bfloat16)
    for name in ("prior.safetensors", "tokenizer.safetensors"):
        size, whole = ((folder / name).stat().st_size for folder in (tmp_path / "half", saved))
        assert size < 0.75 * whole  # names and shapes take their part
    loaded = Generator.load(tmp_path / "half")
    weight = loaded.prior.head.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, generator.prior.head.weight.bfloat16().float())
    images = loaded([3], seeds=[4], top_k=1).images
    assert images.shape == (1, 8, 8, 3) and images.std() > 1


def test_a_tokenizer_alone_is_a_model(generator: Generator, tmp_path: Path) -> None:
    settings = generator.settings.model_copy(update={"prior": None})
    Generator(settings, generator.tokenizer).save(tmp_path / "model")
    loaded = Generator.load(tmp_path / "model")
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(loaded.tokenizer.encode(images), generator.tokenizer.encode(images))
    with pytest.raises(ValueError, match="no prior"):
        _ = loaded.prior


def test_a_schedule_that_is_not_square(tmp_path: Path) -> None:
    wide = random_generator(model_settings(sizes=((1, 2), (2, 5))))
    wide.save(tmp_path / "wide")
    loaded = Generator.load(tmp_path / "wide")
    assert loaded.tokenizer.image_size == (4, 10)
    assert torch.equal(loaded([1], seeds=[0]).images_BCHW, wide([1], seeds=[0]).images_BCHW)


# damage


def _cut(folder: Path) -> None:
    file = folder / "prior.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _scramble(folder: Path) -> None:
    (folder / "tokenizer.safetensors").write_bytes(b"\xff" * 1000)


def _empty(folder: Path) -> None:
    (folder / "prior.safetensors").write_bytes(b"")


def _drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        for path, value in changes.items():
            *parents, name = path.split("__")
            place = content
            for parent in parents:
                place = place[parent]
            place[name] = value
        (folder / "config.json").write_text(json.dumps(content))

    return change


def _rename_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "prior.safetensors")
    tensors["heat.weight"] = tensors.pop("head.weight")
    save_file(tensors, folder / "prior.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "prior.safetensors is not a readable safetensors file"),
        (_scramble, "tokenizer.safetensors is not a readable safetensors file"),
        (_empty, "prior.safetensors is not a readable safetensors file"),
        (_drop("config.json"), "is no model folder: it holds no config.json"),
        (_drop("prior.safetensors"), "prior.safetensors does not exist"),
        (_config(colour="red"), "config.json is not a valid model config: .*colour"),
        (_config(format_version=2), "config.json is not a valid model config: .*format_version"),
        (_config(prior__depht=3), "config.json is not a valid model config: .*depht"),
        (_config(prior__depth="three"), "config.json is not a valid model config: .*depth"),
        (_config(schedule__sizes=[[9, 9], [4, 4]]), r"config.json is not a valid .*scale \(9, 9\)"),
        (_config(tokenizer__quantizer__phi_of_scale=[0, 1, 2]), "phi_of_scale .* each of 4 scales"),
        (_config(tokenizer__quantizer__phi_of_scale=[0, 1, 2, -1]), "phi_of_scale .* one of 4 phis"),
        (_config(prior__model_dim=30), "model_dim 30 is not divisible by num_heads 4"),
        (_config(prior__depth=3), "prior.safetensors does not fit .*blocks.2.* is missing"),
        (_config(prior__depth=1), "prior.safetensors does not fit .*blocks.1.* is not part of the model"),
        (
            _config(tokenizer__quantizer__vocab_size=50),
            r"head.weight has shape \(48, 32\), expected \(50, 32\)",
        ),
        (_config(class_names=["a", "b"]), r"class_embedding.weight has shape \(11, 32\), expected \(3, 32\)"),
        (_rename_a_tensor, "head.weight is missing; heat.weight is not part of the model"),
    ],
)
def test_damage_is_named_in_one_line(copy: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copy)
    with pytest.raises(ValueError, match=message) as caught:
        Generator.load(copy)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_no_json(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not a valid model config"):
        Generator.load(copy)


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model 'cifar11-tiny': expected a model folder or one of"):
        find_model("cifar11-tiny")
    with pytest.raises(ValueError, match="no model"):
        Generator.load(tmp_path / "nowhere")


# somebody's files


@pytest.mark.parametrize("names", [["notes.txt"], ["config.json", "notes.txt"]], ids=str)
def test_a_folder_with_other_contents_is_left_alone(
    generator: Generator, tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match="exists and holds other files"):
        generator.save(tmp_path)
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(names)
    assert all((tmp_path / name).read_text() == "mine" for name in names)


def test_a_model_is_replaced_whole(generator: Generator, copy: Path) -> None:
    settings = generator.settings.model_copy(update={"prior": None})
    Generator(settings, generator.tokenizer).save(copy)
    assert sorted(item.name for item in copy.iterdir()) == [name for name in FILES if "prior" not in name]
    generator.save(copy)
    assert Generator.load(copy).settings.schedule.sizes == SIZES
    assert [item.name for item in copy.parent.iterdir()] == ["model"]  # no temporary folder stays


def test_the_card_says_what_the_model_is(saved: Path) -> None:
    card = (saved / "README.md").read_text()
    for words in ("8 x 8 pixels", "1x1, 2x2, 3x3, 4x4", "48 of width 6", "classes: 10", "depth 2, width 32"):
        assert words in card
