"""Compiled blocks train as the others do, up to rounding, and are one graph for all of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from nextscale import checkpoint
from nextscale.train import run as train_run_module
from nextscale.train.settings import PriorRun
from runs_for_tests import largest_difference, make_home, tiny_run, train_quietly

pytestmark = [  # the compiler's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


def _compiled(run: Any) -> PriorRun:
    assert isinstance(run, PriorRun)
    return run.model_copy(update={"compile": True})


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="on CPUs, torch compiles with g++")
@pytest.mark.parametrize("kind", ["prior", "diffusion"])
def test_a_compiled_run_is_the_same_up_to_rounding(kind: str, tmp_path: Path) -> None:
    home = make_home(tmp_path)
    run = tiny_run(kind, home)
    train_quietly(run, tmp_path / "eager")
    torch._dynamo.reset()
    counters.clear()
    train_quietly(_compiled(run), tmp_path / "compiled")
    assert counters["stats"]["unique_graphs"] == 1  # of two blocks, and none of the averaged copy
    assert not counters["graph_break"]
    records = [(tmp_path / name / "run.json").read_text() for name in ("eager", "compiled")]
    assert records[0] == records[1]  # either goes on as the other
    first, second = (
        checkpoint.read_tensors(tmp_path / name / "model/prior.safetensors") for name in ("eager", "compiled")
    )
    assert largest_difference(first, second) < 1e-3


_WATCHED = """
import sys
from pathlib import Path
from runs_for_tests import make_home, tiny_run, train_quietly
home = make_home(Path(sys.argv[1]))
run = tiny_run("prior", home).model_copy(update={"compile": True})
ledger = run.ledger.model_copy(update={"fingerprint": True, "recheck_every": 3})
train_quietly(run.model_copy(update={"ledger": ledger}), home / "run", curves=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="on CPUs, torch compiles with g++")
def test_the_compiler_is_no_false_alarm_while_a_run_is_watched(tmp_path: Path) -> None:
    """In a process of its own: what torch.compile changes at its first use, it changes once."""
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, str(tmp_path)], cwd=Path(__file__).parent, capture_output=True,
        text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model" / "prior.safetensors").exists()


def test_compiling_with_slices_is_refused(tmp_path: Path) -> None:
    run = tiny_run("prior", make_home(tmp_path))
    changed = _compiled(run).model_dump() | {"loop": run.loop.model_dump() | {"sharding": "full"}}
    with pytest.raises(ValueError, match="compile true with loop"):
        PriorRun.model_validate(changed)
    assert "compile" not in train_run_module.settings_that_decide(_compiled(run))
