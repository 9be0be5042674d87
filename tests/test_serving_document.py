"""What docs/serving.md tells people to type, typed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image

from nextscale.cli import main
from serving_for_tests import mask_with_hole, serving

TEXT = (Path(__file__).parent.parent / "docs" / "serving.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_examples_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mask_with_hole((32, 32)).save("hole.png")
    python = [text for language, text in BLOCKS if language == "python"]
    curls = [line for _, text in BLOCKS for line in text.splitlines() if line.startswith("curl")]
    assert len(python) == 1 and len(curls) == 2
    with serving(["cifar10-tiny"]) as address:
        port = address.rsplit(":", 1)[1]
        done = subprocess.run(
            [sys.executable, "-c", python[0].replace(":8000", f":{port}")], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[-1] == "image_generation.completed"
        assert numpy.asarray(Image.open("frog.png")).shape == (32, 32, 3)
        answers = [
            subprocess.run(
                shlex.split(line.replace(":8000", f":{port}")), capture_output=True, text=True, check=True
            ).stdout
            for line in curls
        ]
    assert answers[0].count("event: ") >= 1 and "event: finished" in answers[0]
    assert json.loads(answers[1])["finished"]


def test_the_key_of_the_example_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = [line for _, text in BLOCKS for line in text.splitlines() if "--new-key" in line]
    command, file = line.removeprefix("nextscale ").split(" >> ")
    assert main(shlex.split(command)) == 0
    Path(file).write_text(capsys.readouterr().out)
    assert Path(file).read_text().startswith("alice:")
