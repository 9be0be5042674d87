"""``nextscale sign``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

_PASSWORD = "NEXTSCALE_KEY_PASSWORD"


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Sign a model folder."""
    from nextscale.integrity.signatures import sign_folder

    if bool(options.key) == options.keyless:
        raise ValueError("give --key or --keyless, one of them: it says who signs")
    if options.certificate and not options.key:
        raise ValueError("--certificate belongs to a key: give --key too")
    if options.chain and not options.certificate:
        raise ValueError("--chain leads from a certificate to its authority: give --certificate too")
    token = Path(options.identity_token) if options.identity_token else None
    if token is not None and not options.keyless:
        raise ValueError("--identity-token belongs to --keyless: give both, or none")
    place = sign_folder(
        Path(options.model).expanduser(), key=_path(options.key), password=key_password(),
        certificate=_path(options.certificate), chain=[Path(item) for item in options.chain],
        identity_token=token.read_text().strip() if token is not None else None,
    )  # fmt: skip
    print(f"signature: {place}")


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser() if text else None


def key_password() -> bytes | None:
    """The password of a private key, which has no place on a command line."""
    text = os.environ.get(_PASSWORD)
    return text.encode() if text else None
