"""What every test starts from and leaves behind: one thread, known random numbers, torch as it was."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

# One thread in every process that the tests start, so that sums do not depend on how many run side by side;
# set before torch and numpy are imported, since both read it once.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

import hypothesis
import numpy
import pytest
import torch

# the same examples every time, and no failure because a machine is busy
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("steady")


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    """Seed every generator before a test; put back what a test may have changed for the whole process."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
    random.setstate(states[0])
    numpy.random.set_state(states[1])
    torch.set_rng_state(states[2])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


#: When something finds an attack, by what it is.
WHEN = {
    "audit": "while training", "chain of the ledger": "when read", "explain": "afterwards",
    "fingerprint": "at the start", "look at the memory": "while training", "policy": "at the start",
    "reading": "when read", "replay": "afterwards", "signature": "when read", "verify": "afterwards",
    "start, by fingerprint and images": "at the start", "start, by the ledger": "at the start",
}  # fmt: skip


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Have the report of an attack say what must find it, and what the test looks for in its words."""
    mark = item.get_closest_marker("attack")
    if mark is not None:
        item.user_properties.append(("attack", (mark.kwargs["by"], mark.kwargs["names"])))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """`make attacks`: a table of what was spoiled, and whether it was found by what should find it."""
    if config.getoption("markexpr") != "attack":
        return
    rows = [
        (*dict(report.user_properties)["attack"], report.nodeid.partition("::")[2], found, report.duration)
        for found, kind in (("found", "passed"), ("NOT FOUND", "failed"))
        for report in terminalreporter.getreports(kind)
        if report.when == "call" and report.user_properties
    ]
    for by, names, attack, found, seconds in sorted(rows):
        terminalreporter.write_line(
            f"{found:9}  {WHEN[by]:14}  {by:32}  {names:32}  {seconds:6.2f} s  {attack}"
        )
    missed = sum(found != "found" for *_, found, _ in rows)
    terminalreporter.write_line(f"{len(rows)} attacks, {missed} not found by what should find them")


@pytest.fixture
def gate() -> Any:
    """Holds engines up, see `serving_for_tests.Gate`."""
    from serving_for_tests import Gate  # here, so that other tests do not wait for servers to be imported

    return Gate()


@pytest.fixture
def start(gate: Any) -> Iterator[Any]:
    """Starts engines behind the gate, and ends them."""
    from serving_for_tests import engines

    with engines(gate) as starting:
        yield starting
