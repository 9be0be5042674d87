"""What the commands that run whole studies have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from pydantic import BaseModel

from nextscale.config import build, merge, parse_overrides
from nextscale.recipes import read_study

Study = TypeVar("Study", bound=BaseModel)


def asked_for(options: argparse.Namespace, rest: Sequence[str], kind: str, settings: type[Study]) -> Study:
    """The study that a command line names, with the settings that it gives. Raises ValueError."""
    tree = merge(read_study(options.study, kind), parse_overrides(rest, settings))
    return build(settings, tree, source=f"{options.study} with the given settings" if rest else options.study)


@contextmanager
def stoppable() -> Iterator[None]:
    """A block that ends the command with a line and its exit code when a signal stops a training in it."""
    from nextscale.train.stopping import Stopped

    try:
        yield
    except Stopped as stopped:
        sys.stderr.write(f"nextscale: {stopped}\n")
        raise SystemExit(Stopped.EXIT_CODE) from None


def show_bars(options: argparse.Namespace) -> bool:
    """Whether somebody looks."""
    return not options.quiet and sys.stderr.isatty()


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)
