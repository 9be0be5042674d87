"""Options of the commands that run whole studies."""

from __future__ import annotations

import argparse


def add_study_options(command: argparse.ArgumentParser, results: str, example: str, *, part: str) -> None:
    """What all of them take.

    Args:
        command: of the study.
        results: the files that it leaves.
        example: of a setting that is given.
        part: of the study, as an example.
    """
    command.add_argument("study", help="name of a recipe with such a study, or a .toml file")
    command.add_argument("--out", help=f"folder that gets {results} (default: runs/STUDY)")
    command.add_argument("--device", help="cpu, cuda, ... (default: a GPU when there is one)")
    command.add_argument(
        "--only", nargs="+", metavar="PART",
        help=f"do these parts alone ({part}), while other processes or machines do others",
    )  # fmt: skip
    command.add_argument("--dry-run", action="store_true", help="say what it will take, and stop")
    command.add_argument("--quiet", action="store_true", help="no progress bars")
    command.epilog = f"Every setting of the study can be given as --a.b.c VALUE, for example {example}."
