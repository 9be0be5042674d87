"""Models to the Hugging Face hub and back: the real client against a server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hub_for_tests import TOKEN, Hub, running_hub
from models_for_tests import random_generator, tokens_of
from nextscale import Generator
from nextscale.cli import main
from nextscale.models import find_model, is_model
from nextscale.models.hub import hub_name

FILES = {"README.md", "config.json", "prior.safetensors", "tokenizer.safetensors"}
HEAD = """
import json, sys, warnings
warnings.simplefilter("error")
from nextscale import Generator
from nextscale.models import find_model

def tokens(model, **how):
    return Generator.from_pretrained(model, **how)([1, None], seeds=[0, 1]).tokens_BL.tolist()

def refusal(model, **how):
    try:
        find_model(model, **how)
    except ValueError as error:
        return str(error)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "model"
    random_generator().save(folder)
    return folder


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    """With one model, and beside it what must never be fetched."""
    with running_hub() as hub:
        files = {file.name: file.read_bytes() for file in model.iterdir()}
        harm = {"pipeline.py": b"raise SystemExit(9)", "model.pkl": b"", "sub/prior.safetensors": b"x"}
        hub.repos["someone/tiny"] = [files | harm]
        yield hub


def client(code: str, hub: Hub | str, home: Path, **more: str) -> Any:
    """What a program printed last that has this hub for the real one."""
    url = hub.url if isinstance(hub, Hub) else hub
    names = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))} | names | more
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_model_is_fetched_once_and_nothing_else_of_it(hub: Hub, model: Path, tmp_path: Path) -> None:
    code = """
whole = tokens("hub:someone/tiny@main")
folder = find_model("someone/tiny", local_files_only=True)
print(json.dumps([whole, str(folder), refusal("hub:someone/tiny", revision="v2"), refusal("hub:no/body"),
                  refusal("no/body"), refusal("hub:someone/tiny", revision="first", cache_dir="elsewhere",
                  local_files_only=True)]))
"""
    whole, folder, no_revision, no_repo, bare, never = client(code, hub, tmp_path)
    assert whole == tokens_of(Generator.load(model)([1, None], seeds=[0, 1])).tolist()
    assert {item.name for item in Path(folder).iterdir()} == FILES
    fetched = [
        line.rpartition("/")[2] for line in hub.requests if line.startswith("GET") and "resolve" in line
    ]
    assert sorted(fetched) == sorted(FILES)
    for text in (no_revision, no_repo, bare):
        assert "could not be fetched" in text and "check the name, the revision and the network" in text
    assert "never fetched to this cache_dir" in never


def test_no_network(tmp_path: Path) -> None:
    answer = client('print(json.dumps(refusal("hub:someone/tiny")))', "http://127.0.0.1:9", tmp_path)
    assert "hub:someone/tiny" not in answer and "someone/tiny could not be fetched" in answer
    offline = client('print(json.dumps(refusal("a/b")))', "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert "could not be fetched" in offline


def test_a_model_goes_there_and_comes_back(hub: Hub, model: Path, tmp_path: Path) -> None:
    code = f"""
from nextscale.generate.card import CardSettings
model = Generator.load({str(model)!r})
about = CardSettings(name="Tiny", license="mit")
url = model.push_to_hub("me/tiny", private=True, commit_message="First", token={TOKEN!r}, about=about)
model.save_pretrained("tiny2", push_to_hub=True, token={TOKEN!r})
try:
    model.push_to_hub("me/other", token="wrong")
except ValueError as error:
    refused = str(error)
print(json.dumps([url, tokens("me/tiny", token={TOKEN!r}), refusal("me/tiny", cache_dir="new"), refused]))
"""
    url, back, private, refused = client(code, hub, tmp_path)
    assert url == f"{hub.url}/me/tiny/commit/{hub.sha('me/tiny', 1)}"
    assert hub.messages == ["First", "Upload a nextscale model"] and hub.private == {"me/tiny"}
    assert hub.repos["me/tiny"][-1].keys() == FILES == hub.repos["me/tiny2"][-1].keys()
    assert hub.repos["me/tiny"][-1]["README.md"].decode().startswith("---\nlibrary_name: ")
    assert (tmp_path / "tiny2" / "config.json").is_file()
    assert back == tokens_of(Generator.load(model)([1, None], seeds=[0, 1])).tolist()
    assert "could not be fetched" in private and "me/other could not be pushed" in refused


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    generator = Generator.from_pretrained(model)
    assert len(Generator.from_pretrained("cifar10-tiny").class_names) == 10
    with pytest.raises(
        ValueError, match=r"needs the package huggingface_hub: pip install 'nextscale\[hub\]'"
    ):
        Generator.load("hub:owner/name")
    with pytest.raises(ValueError, match=r"pushing to me/x needs .* pip install 'nextscale\[hub\]'"):
        generator.push_to_hub("me/x")


def test_which_names_are_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hub_name("owner/name") == ("owner/name", None)
    assert hub_name("owner/name@v1.0") == ("owner/name", "v1.0")
    assert hub_name("hub:runs/prior@a/b") == ("runs/prior", "a/b")
    for path in ("runs/prior", "name", "./a/b", "/a/b", "a/b/c", "../a", "~/model", "owner/"):
        assert hub_name(path) is None, path
    for wrong in ("hub:", "hub:name", "hub:a/b/c", "hub:/a"):
        with pytest.raises(ValueError, match="names no model of the hub: expected hub:OWNER/NAME"):
            hub_name(wrong)
    with pytest.raises(ValueError, match="no model 'runs/prior': expected a model folder"):
        find_model("runs/prior")


def test_where_images_may_stand_a_model_of_the_hub_is_marked(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_model("hub:owner/name") and is_model("cifar10-tiny") and is_model(str(model))
    assert not is_model("owner/name") and not is_model("pictures")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["evaluate", "hub:owner/name", "--reference", "x.npz"]) == 2
    assert "owner/name needs the package huggingface_hub" in capsys.readouterr().err


def test_a_folder_that_is_here_wins(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").symlink_to(model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert torch.equal(*(tokens_of(Generator.load(at)([1], seeds=[0])) for at in ("owner/name", model)))
    with pytest.raises(ValueError, match="revision 'v1' has no effect on the local folder"):
        find_model("owner/name", revision="v1")
    with pytest.raises(ValueError, match="names revision v1, revision='v2' another"):
        find_model("hub:owner/name@v1", revision="v2")
    with pytest.raises(
        ValueError, match="repo_id and what goes with it have no effect: add push_to_hub=True"
    ):
        Generator.load(model).save_pretrained(tmp_path / "new", private=True)
    assert not (tmp_path / "new").exists()
