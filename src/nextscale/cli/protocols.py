"""Protocols: read by name, and held against what else was typed."""

from __future__ import annotations

import argparse
from typing import Any

from nextscale.config import build, read_toml
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
    tree = read_toml(protocol_file(name), kind="protocol", name=name, names=protocol_names())
    return build(Protocol, tree, source=name)


def check_no_contradiction(protocol: Protocol, options: argparse.Namespace) -> None:
    """Raise ValueError for an option that asks for something else than the protocol."""
    fixed: dict[str, Any] = {
        "num_samples": protocol.num_samples, "seed": protocol.first_seed, "features": protocol.features,
        "reference_kind": protocol.reference_kind,
    }  # fmt: skip
    fixed |= {name: protocol.sampling.get(name) for name in SamplingSettings.model_fields}
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
