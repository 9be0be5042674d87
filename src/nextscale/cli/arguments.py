"""argparse as our commands use it."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"nextscale: {message}; see {self.prog} --help\n")
        raise SystemExit(2)

    def option_strings(self) -> Iterator[str]:
        """Every option of this command and of its actions."""
        yield from self._option_string_actions
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser.option_strings()

    def refuse_unknown(self, command: str, rest: Sequence[str]) -> NoReturn:
        """Complain about an argument that a command does not know, with the nearest one it does."""
        actions = next(action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        known = list(actions.choices[command].option_strings())
        near = difflib.get_close_matches(rest[0].split("=")[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        self.error(f"{command} does not know {rest[0]!r}{hint}")
