"""The kill drill: trainings are killed at random and at the worst moments, and must lose nothing.

    make drill                      # every kind of run, 20 random and 5 forced kills each, full disk, damage
    python tests/drill.py --random 3 --forced 1 --kinds prior

A run that is started again after each kill must go on at the newest checkpoint that was whole when it died,
and end with the weights, averages, optimizer state and task state of an undisturbed run, to the bit. The last
line is a summary; the exit code is the number of losses (at most 100).
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

STEPS, SAVE_EVERY = 60, 5
PARTS = ("module", "average", "optimizer", "task")


def child(kind: str, home: Path, folder: Path, die_at_rename: int) -> None:
    """Train in this process; before the given renaming of a checkpoint (counted from 1), die."""
    import torch

    from nextscale.train.run import train_run
    from runs_for_tests import tiny_run

    torch.set_num_threads(1)
    rename, count = Path.rename, [0]

    def deadly_rename(self: Path, target: Path) -> Path:
        if self.name.startswith(".step-"):
            count[0] += 1
            if count[0] == die_at_rename:
                os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.rename = deadly_rename  # type: ignore[method-assign]
    run = tiny_run(kind, home, num_steps=STEPS, save_every=SAVE_EVERY, evaluate_every=20, log_every=5)
    train_run(run, folder, device="cpu", say=lambda line: print(line, flush=True), progress=False)


@dataclass
class Drill:
    """What is repeated, and what went wrong."""

    home: Path
    chance: random.Random
    kills: int = 0
    losses: list[str] = field(default_factory=list)

    def start(self, kind: str, folder: Path, die_at_rename: int = 0) -> subprocess.Popen[str]:
        """A training process."""
        command = [sys.executable, __file__, "--child", kind, str(self.home), str(folder), str(die_at_rename)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run_to_the_end(self, kind: str, folder: Path) -> str:
        """Train, and return what was said."""
        process = self.start(kind, folder)
        said, _ = process.communicate()
        self.expect(process.returncode == 0, f"{kind}: a run that nobody disturbed failed: {said[-500:]}")
        return said

    def expect(self, good: bool, problem: str) -> None:
        """Count a loss unless all is well."""
        if not good:
            self.losses.append(problem)
            print(f"LOSS {problem}", flush=True)

    def goes_on(self, said: str, newest: int, kind: str) -> None:
        """Whether a run that was started again took up the newest checkpoint there was."""
        match = re.search(r"going on after step (\d+)", said)
        taken = int(match[1]) if match else 0
        self.expect(taken >= newest, f"{kind}: went on after step {taken}, but {newest} was saved")

    def compare(self, folder: Path, expected: Path, kind: str) -> None:
        """Every bit of the final state."""
        last = Path("checkpoints") / f"step-{STEPS:08d}"
        for name in PARTS:
            files = [place / last / f"{name}.safetensors" for place in (folder, expected)]
            same = all(file.exists() for file in files) and files[0].read_bytes() == files[1].read_bytes()
            self.expect(same, f"{kind}: {name} differs from the undisturbed run")


def newest_step(folder: Path) -> int:
    """Of the checkpoints that are in place."""
    steps = [int(place.name.removeprefix("step-")) for place in (folder / "checkpoints").glob("step-*")]
    return max(steps, default=0)


def kill_at_random(drill: Drill, kind: str, expected: Path, seconds: float, times: int) -> None:
    """Runs that are killed after a random time until the kills are used up; then one that may finish."""
    folder, left, first = drill.home / f"{kind}-random", times, True
    while left:
        newest = newest_step(folder)
        process = drill.start(kind, folder)
        assert process.stdout is not None
        said = process.stdout.readline()  # imports are over, training begins
        time.sleep(drill.chance.uniform(0, seconds / 3))
        finished = process.poll() is not None
        process.kill()
        said += process.communicate()[0]
        if newest and "going on" in said:  # it may have died before it could say so
            drill.goes_on(said, newest, kind)
        drill.expect(first or newest_step(folder) >= newest, f"{kind}: a saved checkpoint vanished")
        first = False
        if finished or newest_step(folder) == STEPS:  # nothing left to kill: the next run starts anew
            drill.compare(folder, expected, kind)
            shutil.rmtree(folder)
            first = True
            continue
        left -= 1
        drill.kills += 1
    newest = newest_step(folder)
    drill.goes_on(drill.run_to_the_end(kind, folder), newest, kind)
    drill.compare(folder, expected, kind)


def kill_before_renaming(drill: Drill, kind: str, expected: Path, times: int) -> None:
    """Each time, the process dies when its checkpoint is written and not yet in its place."""
    folder = drill.home / f"{kind}-forced"
    for _ in range(times):
        newest = newest_step(folder)
        process = drill.start(kind, folder, die_at_rename=drill.chance.randint(1, 3))
        said, _ = process.communicate()
        drill.expect(
            process.returncode == -signal.SIGKILL, f"{kind}: did not die as it should: {said[-300:]}"
        )
        if newest:
            drill.goes_on(said, newest, kind)
        drill.kills += 1
    drill.run_to_the_end(kind, folder)
    drill.compare(folder, expected, kind)


def damage(drill: Drill, kind: str, expected: Path) -> None:
    """A checkpoint is cut short, another has one bit turned: the one before is used, and it is said."""
    for name, spoil in (("truncated", lambda data: data[:-100]), ("bit-flipped", flip_a_bit)):
        folder = drill.home / f"{kind}-{name}"
        process = drill.start(kind, folder)
        while newest_step(folder) < 4 * SAVE_EVERY and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        process.communicate()
        newest = newest_step(folder)
        file = folder / "checkpoints" / f"step-{newest:08d}" / "module.safetensors"
        file.write_bytes(spoil(file.read_bytes()))
        said = drill.run_to_the_end(kind, folder)
        drill.expect(f"checkpoint passed over: {file}" in said, f"{kind}: a {name} file was not refused")
        drill.goes_on(said, newest - SAVE_EVERY, kind)
        drill.compare(folder, expected, kind)


def flip_a_bit(data: bytes) -> bytes:
    """The lowest one of the byte in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def full_disk(drill: Drill, kind: str, expected: Path) -> str:
    """A small file system fills up: the run ends, keeps what it had, and goes on with more room."""
    place = drill.home / f"{kind}-disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]).returncode:
        return "not tried (mounting needs root)"
    try:
        folder, ballast, failures = place / "run", place / "ballast", 0
        process = drill.start(kind, folder)
        while newest_step(folder) < 2 * SAVE_EVERY and process.poll() is None:
            time.sleep(0.002)
        before, free = newest_step(folder), shutil.disk_usage(place).free
        drill.expect(before >= 2 * SAVE_EVERY, f"{kind}: the disk was full before its time: enlarge it")
        ballast.write_bytes(b"\0" * max(free - 60_000, 0))  # room for a part of a checkpoint
        said, _ = process.communicate()
        failures += process.returncode != 0
        drill.expect("No space left" in said, f"{kind}: a full disk was not named: {said[-300:]}")
        newest = newest_step(folder)
        drill.expect(newest >= before, f"{kind}: the full disk cost a checkpoint")
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
        drill.goes_on(drill.run_to_the_end(kind, folder), newest, kind)
        drill.compare(folder, expected, kind)
        return f"{failures} run ended by it and went on"
    finally:
        subprocess.run(["umount", str(place)], check=True)


def main() -> int:
    """Drill, and say what happened in the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=["tokenizer", "prior", "adversarial"])
    parser.add_argument("--random", type=int, default=20, help="kills at random moments, per kind")
    parser.add_argument("--forced", type=int, default=5, help="kills before a renaming, per kind")
    parser.add_argument("--kills-only", action="store_true", help="no damaged checkpoints, no full disk")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, home, folder, die = options.child
        child(kind, Path(home), Path(folder), int(die))
        return 0
    import torch

    from runs_for_tests import make_home

    with tempfile.TemporaryDirectory() as temporary:
        drill, disk = Drill(make_home(Path(temporary)), random.Random(options.seed)), []
        for kind in options.kinds:
            expected, start = drill.home / kind, time.perf_counter()
            drill.run_to_the_end(kind, expected)
            seconds = time.perf_counter() - start
            print(f"{kind}: {STEPS} steps, undisturbed in {seconds:.1f} s", flush=True)
            kill_at_random(drill, kind, expected, seconds, options.random)
            kill_before_renaming(drill, kind, expected, options.forced)
            if not options.kills_only:
                damage(drill, kind, expected)
                disk.append(full_disk(drill, kind, expected))
            print(f"{kind}: done", flush=True)
    where = f"{torch.backends.cpu.get_cpu_capability()}, 1 thread, torch {torch.__version__}"
    print(
        f"drill: {', '.join(options.kinds)}: {drill.kills} kills, {2 * len(disk)} damaged checkpoints, "
        f"full disk: {disk[0] if disk else 'left out'}; losses: {len(drill.losses)} (to the bit on {where})"
    )
    return min(len(drill.losses), 100)


if __name__ == "__main__":
    sys.exit(main())
