"""The commands. ``nextscale COMMAND --help`` explains each.

Special here: nothing but the standard library is imported until a command runs, so help is instant; every
error that a user can mend is one line on stderr and exit code 2.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from nextscale.cli.parser import build_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    parser = build_parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, rest = parser.parse_known_args(given)
    if rest and options.command not in ("train", "approve", "scaling", "compare"):  # these take settings
        parser.refuse_unknown(options.command, rest)
    try:
        code = options.run(options, rest)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        sys.stderr.write(f"nextscale: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("nextscale: stopped; run the same command again to go on\n")
        return 130
    return code or 0
