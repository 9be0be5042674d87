"""Honest trainings, each interrupted once: all that looks for attacks must stay silent.

    make attacks                            # 100 runs, after the attacks
    python tests/honest_runs.py --runs 5

Every run starts, ends at a random step, goes on to the end, and is verified, and its model is explained; a
stretch of every fifth is replayed, and every tenth is audited on the way. The last line is a summary; the
exit code is the number of false alarms (at most 100).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import sys
import tempfile
from pathlib import Path

KINDS = ("prior", "tokenizer", "adversarial", "next_token", "diffusion", "decoder", "classifier")


def honest_run(kind: str, home: Path, folder: Path, *, stop: int, replayed: bool, audited: bool) -> str:
    """What was complained of; empty: nothing."""
    from nextscale.cli import main
    from nextscale.train.run import train_run
    from nextscale.train.stopping import Stopped
    from runs_for_tests import STEPS, tiny_run

    said: list[str] = []
    for stop_after in (stop, 0):
        run = tiny_run(kind, home, keep=9, stop_after=stop_after)
        ledger = {"fingerprint": True, "recheck_every": 5, "anchor": str(home / "heads.jsonl")}
        ledger["audit_every"] = STEPS // 2 if audited else 0
        run = run.model_copy(update={"ledger": run.ledger.model_copy(update=ledger)})
        try:
            train_run(run, folder, device="cpu", say=said.append, progress=False)
        except Stopped:
            continue
        except ValueError as error:
            return str(error)
    if any("could not be audited" in line for line in said):
        return said[-1]
    commands = [["verify", str(folder), "--anchor", str(home / "heads.jsonl")]]
    commands.append(["explain", str(folder / "model")])
    if replayed:
        words = ["--from", "0", "--to", str(STEPS), "--device", "cpu", "--quiet"]
        commands.append(["replay", str(folder), *words])
    for command in commands:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = main(command)
        if code:
            return f"{command[0]}: {out.getvalue()}"
    return ""


def main() -> int:
    """Train many times."""
    parser = argparse.ArgumentParser(description="Honest trainings: how many are taken for spoiled?")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import torch

    from runs_for_tests import STEPS, make_home

    torch.set_num_threads(1)
    chance, alarms = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as place:
        home = make_home(Path(place))
        for number in range(options.runs):
            kind, stop = KINDS[number % len(KINDS)], chance.randrange(1, STEPS)
            text = honest_run(
                kind, home, home / f"run{number}", stop=stop, replayed=number % 5 == 0,
                audited=number % 10 == 3,
            )  # fmt: skip
            alarms += bool(text)
            print(f"run {number}: {kind}, stopped after step {stop}: {text or 'silent'}", flush=True)
    print(f"{options.runs} honest runs, {2 * options.runs} starts: {alarms} false alarms")
    return min(alarms, 100)


if __name__ == "__main__":
    sys.exit(main())
