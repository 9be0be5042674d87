"""Protocols: read by name, and held against what else was typed."""

from __future__ import annotations

import argparse
import tomllib

from nextscale.config import build, nearest
from nextscale.evaluate.protocols import protocol_file, protocol_names
from nextscale.evaluate.settings import Protocol
from nextscale.generate.settings import SamplingSettings

#: Options that say what a protocol says already.
_SETTLED = ("any_reference", "data", "limit", "sweep")


def read_protocol(name: str) -> Protocol:
    """A protocol that comes with the package, or one in a TOML file.

    Raises:
        ValueError: no such protocol (with the nearest name), no TOML, or other settings than a protocol has.
    """
    file = protocol_file(name)
    if not file.is_file():
        names = protocol_names()
        raise ValueError(
            f"unknown protocol {name!r}: expected one of {', '.join(names)}, or a .toml file"
            f"{nearest(name, names)}"
        )
    try:
        tree = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from error
    return build(Protocol, tree, source=name)


def check_no_contradiction(protocol: Protocol, options: argparse.Namespace) -> None:
    """Raise ValueError for an option that asks for something else than the protocol."""
    fixed = {
        "num_samples": protocol.num_samples, "seed": protocol.first_seed, "features": protocol.features,
        "reference_kind": protocol.reference_kind,
    }  # fmt: skip
    fixed |= {name: getattr(protocol, name) for name in SamplingSettings.model_fields}
    for name, wanted in fixed.items():
        given = getattr(options, name)
        if given is not None and given != wanted:
            told = "leaves it to the model" if wanted is None else f"says {wanted}"
            raise ValueError(
                f"--{name.replace('_', '-')} {given} contradicts --protocol {options.protocol}, which "
                f"{told}: leave one of them out"
            )
    for name in _SETTLED:
        if getattr(options, name):
            raise ValueError(
                f"--{name.replace('_', '-')} contradicts --protocol {options.protocol}, which fixes what is "
                "scored and how: leave one of them out"
            )
