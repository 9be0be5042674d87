"""A short version of the drill (`make drill`): kills cost nothing but the steps since the last checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_runs_lose_nothing() -> None:
    script = Path(__file__).with_name("drill.py")
    options = ["--kinds", "prior", "--random", "2", "--forced", "1", "--kills-only"]
    done = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("drill: prior: 3 kills, ")
    assert "losses: 0 " in done.stdout.splitlines()[-1]
