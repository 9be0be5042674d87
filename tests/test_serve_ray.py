"""Two replicas on one machine, one of them killed under load."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from models_for_tests import random_generator
from nextscale.cli.serve import num_replicas
from serving_for_tests import pixels


def _replicas() -> list[int]:
    found = subprocess.run(["pgrep", "-f", "^ray::ServeReplica:nextscale"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and its address."""
    random_generator().save(tmp_path / "small")
    command = [
        sys.executable, "-m", "nextscale.cli", "serve", str(tmp_path / "small"), "--port", "0", "--ray",
        "--replicas", "2", "--dtype", "float32",
    ]  # fmt: skip
    with (tmp_path / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("small: http://127.0.0.1:"), (tmp_path / "errors.txt").read_text()
        yield process, line.split()[1]
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_replica_dies_under_load(server: tuple[subprocess.Popen[str], str]) -> None:
    process, address = server
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
    with client:
        _ask_while_one_dies(client)
    process.terminate()
    assert process.wait(60) == 0 and not _replicas()


def _ask_while_one_dies(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["small"]
    picture = client.images.generate(prompt="frog", extra_body={"seed": 3}).data
    assert picture is not None
    expected = pixels(picture[0].b64_json)
    events = list(client.images.generate(prompt="frog", stream=True, partial_images=2))
    assert [event.type for event in events][-1] == "image_generation.completed"

    answers: collections.Counter[str] = collections.Counter()
    asked: collections.Counter[str] = collections.Counter()
    until = time.monotonic() + 12

    def ask() -> None:
        while time.monotonic() < until:
            asked["all"] += 1
            try:
                again = client.images.generate(prompt="frog", extra_body={"seed": 3}, timeout=60).data
                assert again is not None
                same = (
                    pixels(again[0].b64_json) == expected
                ).all()  # the files say in which batches they were
                answers["equal" if same else "other"] += 1
            except openai.APIStatusError as error:
                answers[str(error.status_code)] += 1
            except openai.APITimeoutError:
                answers["none"] += 1
            except openai.APIConnectionError:  # its answer had begun when the replica died
                answers["cut"] += 1

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    victim, *others = _replicas()
    assert others
    os.kill(victim, signal.SIGKILL)
    for thread in threads:
        thread.join(90)
    assert answers.total() == asked.total() and not answers["none"], f"every request ends: {answers}"
    assert answers["equal"] > 20 and answers["other"] == 0
    assert answers.total() - answers["equal"] <= 8, f"at most what the dead replica was making: {answers}"


@pytest.mark.parametrize(("text", "expected"), [("2", (2, 2)), ("1-4", (1, 4))])
def test_numbers_of_replicas(text: str, expected: tuple[int, int]) -> None:
    assert num_replicas(text) == expected


@pytest.mark.parametrize("text", ["0", "4-1", "two", "1-", "-1"])
def test_wrong_numbers_of_replicas(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected their number, or the fewest and the most as 1-4"):
        num_replicas(text)
