"""Bad input: exit code 2, one line on stderr that names the mistake, nothing written."""

from __future__ import annotations

import pickle
import shlex
from pathlib import Path

import pytest
import torch

from evaluation_for_tests import outcome
from models_for_tests import model_settings, random_generator, write_pictures
from nextscale import Generator
from nextscale.cli import main

TRAIN = "train tokenizer cifar10-tiny --out run --data.source"
TOKENIZE = "tokenize pictures --model model --out new"
PRIOR = "train prior cifar10-tiny --data.source pictures"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refusals") / "model"
    random_generator().save(folder)
    return folder


@pytest.fixture
def here(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with good and bad things in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model)
    write_pictures(tmp_path / "pictures", 4, (8, 8), num_classes=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    whole = (tmp_path / "pictures" / "class 00" / "000.png").read_bytes()
    (tmp_path / "broken" / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "code.pth").write_bytes(pickle.dumps(print))
    (tmp_path / "bad.toml").write_text("[prior.prior]\ndepth = 1\n[prior.looop]\n")
    return tmp_path


def _refused(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    code, out, err = outcome(line, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("nextscale: ") and err.endswith("\n") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # sample
        ("sample nowhere", "no model 'nowhere': expected a model folder or one of"),
        ("sample cifar10-tinny", "did you mean 'cifar10-tiny'"),
        ("sample empty", "empty is no model folder: it holds no config.json"),
        ("sample model --labels 10", "label 10 is out of range: this model knows 0 to 9"),
        ("sample model --labels frogg", "unknown class 'frogg': this model knows airplane"),
        ("sample model --labels frogg", "did you mean 'frog'"),
        ("sample model --top-p 0", "top_p 0.0 is out of range: expected more than 0, at most 1"),
        ("sample model --top-p 1.5", "top_p 1.5 is out of range"),
        ("sample model --top-k 49", "top_k 49 is out of range: expected 0 or more, at most 48"),
        ("sample model --top-k many", "argument --top-k: invalid int value: 'many'"),
        ("sample model --temperature 0", "temperature 0.0 is out of range"),
        ("sample model --guidance -1", "guidance -1.0 is out of range"),
        ("sample model --guidance nan", "guidance nan is out of range"),
        ("sample model --seed -1", "seed -1 must be a whole number from 0"),
        ("sample model --labels 1 --seeds 1 2", "2 seeds for 1 images: give one per image"),
        ("sample model --per-label 0", "--per-label 0 and --batch 50 must be at least 1"),
        ("sample model --batch 0", "must be at least 1"),
        ("sample model --device nonsense", "device 'nonsense' is not available here"),
        ("sample model --device meta", "device 'meta' is not available here"),
        ("sample model --out full", "full exists and is not empty: give another --out"),
        ("sample model --out full/notes.txt", "full/notes.txt is a file: give another --out"),
        ("sample model --tok-p 0.5", "sample does not know '--tok-p'; did you mean --top-p?"),
        ("sample model --out", "argument --out: expected one argument"),
        ("sample", "the following arguments are required: model"),
        # tokenize
        (f"{TOKENIZE} --views 0", "views 0 must be at least 1"),
        (f"{TOKENIZE} --views 2 --enlarge 1", "2 views without flip and with enlarge 1 would be the same"),
        (f"{TOKENIZE} --views 1 --enlarge 1 --seed 3", "--seed 3 would have no effect without --flip"),
        (f"{TOKENIZE} --views 2 --enlarge 0.5", "tokenize: enlarge is 0.5: input should be greater than"),
        (f"{TOKENIZE} --views 2 --seed -1", "seed -1 must be a whole number from 0"),
        (f"{TOKENIZE} --views 2 --batch 0", "--batch 0 must be at least 1"),
        (f"{TOKENIZE} --views 2 --workers -1", "num_workers is -1"),
        (f"{TOKENIZE} --views 2 --validation-share 0.9", "validation_share is 0.9: input should be less"),
        (f"{TOKENIZE} --views 2 --device nonsense", "device 'nonsense' is not available here"),
        (f"{TOKENIZE} --views two", "argument --views: invalid int value: 'two'"),
        (f"{TOKENIZE} --viewz 2", "the following arguments are required: --views"),
        ("tokenize pictures --model nowhere --out new --views 2", "no model 'nowhere'"),
        ("tokenize nowhere --model model --out new --views 2", "nowhere does not exist"),
        ("tokenize empty --model model --out new --views 2", "empty holds no images"),
        ("tokenize pictures --model model --out full --views 2", "full exists and is no token cache"),
        # reconstruct
        ("reconstruct model nowhere.png", "nowhere.png does not exist"),
        ("reconstruct model empty", "empty holds no images"),
        ("reconstruct model broken", "image broken/half.png cannot be read"),
        ("reconstruct model broken/half.png", "image broken/half.png cannot be read"),
        ("reconstruct model broken.parquet", "broken.parquet is not a readable Parquet file"),
        ("reconstruct model full/notes.txt", "image full/notes.txt cannot be read"),
        ("reconstruct model pictures --limit 0", "--limit 0 must be at least 1"),
        ("reconstruct model pictures --out full", "full exists and is not empty"),
        ("reconstruct nowhere pictures", "no model 'nowhere'"),
        # evaluate
        ("evaluate model --data nowhere", "nowhere does not exist"),
        ("evaluate model --data pictures", "pictures has other classes than the model: class 00, class 01"),
        ("evaluate model --data broken", "image broken/half.png cannot be read"),
        ("evaluate model --num-samples -1", "--num-samples -1 must be at least 0"),
        ("evaluate model --limit 0", "--limit 0 must be at least 1"),
        ("evaluate model --out full", "full exists and is not empty"),
        ("evaluate model --top-k 49", "top_k 49 is out of range"),
        # demo, convert
        ("demo --model nowhere", "no model 'nowhere'"),
        ("demo --model model --out full", "full exists and is not empty"),
        ("convert --tokenizer nowhere.pth --out new", "nowhere.pth"),
        ("convert --tokenizer full/notes.txt --out new", "full/notes.txt"),
        ("convert --tokenizer code.pth --out new", "code.pth"),
        ("convert --out new", "the following arguments are required: --tokenizer"),
        # train
        ("train tokenizer cifar10-tini", "unknown recipe 'cifar10-tini': expected one of"),
        ("train tokenizer cifar10-tini", "did you mean cifar10-tiny?"),
        ("train tokenizer nowhere.toml", "unknown recipe 'nowhere.toml'"),
        ("train prior bad.toml", "bad.toml: unknown key looop; did you mean loop"),
        ("train classifier cifar10-tiny", "has no stage 'classifier': it has tokenizer, prior"),
        ("train tokenizer cifar10-tiny --loop.num_stepz 3", "did you mean --loop.num_steps?"),
        ("train tokenizer cifar10-tiny --loop.num_steps ten", "loop.num_steps is 'ten'"),
        ("train tokenizer cifar10-tiny --loop.num_steps", "--loop.num_steps needs a value"),
        ("train tokenizer cifar10-tiny --loop.num_steps 0", "loop.num_steps is '0'"),
        ("train tokenizer cifar10-tiny more", "unexpected 'more'"),
        ("train tokenizer cifar10-tiny", "no data source given"),
        ("train tokens cifar10-tiny", "argument stage: invalid choice: 'tokens'"),
        ("train tokenizer", "the following arguments are required: recipe"),
        (f"{TRAIN} nowhere", "nowhere does not exist"),
        (f"{TRAIN} empty", "empty holds no images"),
        (f"{TRAIN} pictures --device nonsense", "device 'nonsense' is not available here"),
        ("train tokenizer cifar10-tiny --data.source pictures --out full", "full exists and is no run"),
        (PRIOR, "no tokenizer given: set --tokenizer_from"),
        (f"{PRIOR} --tokenizer_from empty", "empty is no model folder"),
        ("train tokenizer cifar10-tiny --data.on_bad_image ignore", "data.on_bad_image is 'ignore'"),
        # data
        ("data check nowhere", "nowhere does not exist: expected a folder of images"),
        ("data check empty", "empty holds no images"),
        ("data check full/notes.txt", "full/notes.txt is no data source"),
        ("data check broken.parquet", "broken.parquet is not a readable Parquet file"),
        ("data check pictures --out full", "full exists and is not empty"),
        ("data check pictures --ot new", "data does not know '--ot'; did you mean --out?"),
        ("data check", "the following arguments are required: source"),
        ("data", "the following arguments are required: ACTION"),
        (f"{PRIOR} --tokenizer_from model --tokens_from empty", "cache_views 2 would have no effect"),
        (
            f"{PRIOR} --tokenizer_from model --sampling.top_k 0 --tokens_from full --cache_views 0",
            "full holds no token cache",
        ),
        # nothing at all
        ("", "the following arguments are required: COMMAND"),
        ("sampel model", "invalid choice: 'sampel'"),
    ],
)  # fmt: skip
def test_refused(line: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.rglob("*"))
    assert message in _refused(line, capsys)
    assert sorted(here.rglob("*")) == before and (here / "full" / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "device 'cuda' is not available here" in _refused("sample model --device cuda", capsys)


def test_a_damaged_model(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Generator.load("model").save("damaged")
    (here / "damaged" / "prior.safetensors").write_bytes(b"\0" * 99)
    assert "damaged/prior.safetensors is not a readable" in _refused("sample damaged", capsys)
    assert not (here / "samples").exists()


def test_a_model_without_a_prior(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = model_settings().model_copy(update={"prior": None})
    Generator(settings, Generator.load("model").tokenizer).save("half")
    for line in ("sample half", "demo --model half"):
        assert "holds a tokenizer but no prior" in _refused(line, capsys)
    assert not (here / "samples").exists() and not (here / "demo").exists()


def test_a_model_of_classes_that_the_classifier_does_not_know(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = model_settings().model_copy(update={"class_names": tuple("abcdefghij")})
    given = Generator.load("model")
    Generator(settings, given.tokenizer, given.prior).save("letters")
    assert "this model has other classes: give --num-samples 0" in _refused("evaluate letters", capsys)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_unreadable_image_stops_training_with_its_name(
    workers: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run may go on once the image is repaired, so its folder stays."""
    line = f"{TRAIN} broken --loop.num_steps 2 --data.num_workers {workers}"
    assert main(shlex.split(line)) == 2
    err = capsys.readouterr().err
    assert "image broken/half.png cannot be read" in err and err.count("\n") == 1
    assert not (here / "run" / "model").exists()
