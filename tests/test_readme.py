"""Every block of the README is run, in a folder where the files that it speaks of exist."""

import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from golden_weights import states
from images import noise
from nextscale.cli import main
from serving_for_tests import serving

ROOT = Path(__file__).parent.parent
BLOCKS, EDITING, HUB = (
    re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    for page in ("README.md", "docs/editing.md", "docs/hub.md")
)
# A reader's training takes hours; two steps show that the command is right.
SHORT = ["--loop.num_steps", "2", "--loop.evaluate_images", "4", "--ledger.fingerprint", "false", "--quiet"]


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A folder with pictures and a checkpoint of the released layout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hugging-face"))  # diffusers keeps code there
    for number in range(150):
        folder = tmp_path / "my-pictures" / f"class {number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        noise(number, (40, 36)).save(folder / f"{number}.png")
    noise(1, (32, 32)).save(tmp_path / "frog.png")
    noise(2, (16, 16)).save(tmp_path / "small.png")
    noise(3, (32, 32)).save(tmp_path / "hole.png")
    tokenizer, prior = states("base")
    torch.save(tokenizer, "vae_ch160v4096z32.pth")
    torch.save(prior, "var_d16.pth")
    return tmp_path


def test_the_blocks_are_those_that_this_file_can_run():
    assert {language for language, _ in BLOCKS} == {"bash", "python"}
    assert len(BLOCKS) >= 8


@pytest.mark.slow
def test_every_block_runs(stranger):
    run_blocks(BLOCKS)
    for name in (
        "two.png",
        "frogs-and-ships/grid.png",
        "reconstructions/side_by_side.png",
        "my-samples/grid.png",
    ):
        assert (stranger / name).stat().st_size > 0, name
    assert (stranger / "var-d16/prior.safetensors").exists()


def test_the_blocks_of_the_editing_page_run(stranger):
    assert len(EDITING) == 2
    run_blocks(EDITING)
    files = ("filled/edited.png", "best-of-eight/candidates.png", "two-fillings.png", "scale-3.png")
    for name in (*files, "likeliest.png"):
        assert (stranger / name).stat().st_size > 0, name


def test_the_blocks_of_the_hub_page_run(stranger):
    run_blocks(HUB)
    assert "class_agreement" in (stranger / "published/README.md").read_text()
    assert (stranger / "my-model/prior.safetensors").exists()


def run_blocks(blocks: list[tuple[str, str]]) -> None:
    for language, text in blocks:
        if language == "python":
            subprocess.run([sys.executable, "-c", text], check=True, timeout=120)
            continue
        for line in text.strip().splitlines():
            run_line(shlex.split(line))


def run_line(words: list[str]) -> None:
    if words[0] == "make":
        subprocess.run(
            ["make", "--dry-run", "--directory", str(ROOT), *words[1:]], check=True, capture_output=True
        )
    elif words[0] == "pip":
        assert words == ["pip", "install", "."]
        assert (ROOT / "pyproject.toml").exists()
    elif words[:2] == ["nextscale", "serve"]:
        with serving(words[2:]) as address, urllib.request.urlopen(f"{address}/readyz", timeout=60) as answer:
            assert answer.status == 200
    else:
        assert words[0] == "nextscale"
        training = words[1] == "train" and "--settings" not in words
        # the stand-in of the published model knows seven classes
        words = ["1" if word == "207" else "2" if word == "980" else word for word in words[1:]]
        study = words[0] in ("scaling", "compare")
        assert main([*words, *(SHORT if training else ["--dry-run"] if study else [])]) == 0
