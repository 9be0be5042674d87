"""Who must approve a run: a TOML file with the public keys of people, and how many of them are needed.

Special here: a key counts once, whatever names it has.
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nextscale.integrity.signatures import signing_library


class PolicyFile(BaseModel):
    """What stands in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    threshold: int = Field(2, ge=1, description="how many different people must approve")
    keys: dict[str, str] = Field(description="name -> file of the public key (PEM), seen from the policy")


@dataclass(frozen=True)
class Policy:
    """A policy with its keys."""

    threshold: int
    keys: dict[str, Any]  #: name -> public key of securesystemslib
    digest: str  #: SHA-256 over the threshold and the keys, not over names and spelling

    def name_of(self, keyid: str) -> str:
        """Whose key it is."""
        return next(name for name, key in self.keys.items() if key.keyid == keyid)


def read_policy(path: Path) -> Policy:
    """Read a policy and its keys.

    Raises:
        ValueError: no policy, a key that cannot be read, one key under two names, or fewer keys than needed.
    """
    if not path.is_file():
        raise ValueError(f"there is no policy {path}: give a TOML file with threshold and [keys]")
    try:
        given = PolicyFile.model_validate(tomllib.loads(path.read_text()))
    except (ValidationError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} is no policy: {' '.join(str(error).split())}") from error
    keys: dict[str, Any] = {}
    for name, file in given.keys.items():
        key = read_public_key(path.parent / Path(file).expanduser())
        twin = next((other for other, known in keys.items() if known.keyid == key.keyid), None)
        if twin is not None:
            raise ValueError(f"{path}: {twin} and {name} have one key: each needs their own")
        keys[name] = key
    if len(keys) < given.threshold:
        raise ValueError(
            f"{path} asks for {given.threshold} approvals and has {len(keys)} keys: add keys, or lower it"
        )
    text = "\n".join([str(given.threshold), *sorted(key.keyid for key in keys.values())])
    return Policy(given.threshold, keys, hashlib.sha256(text.encode()).hexdigest())


def read_public_key(path: Path) -> Any:
    """A public key of a PEM file. Raises ValueError when there is none."""
    with signing_library(f"{path} holds no public key (PEM)"):
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
        from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]

        return SSlibKey.from_crypto(load_pem_public_key(path.read_bytes()))


def read_signer(path: Path, *, password: bytes | None = None) -> Any:
    """A private key of a PEM file, ready to sign. Raises ValueError when there is none."""
    with signing_library(f"{path} holds no private key (PEM) that can be used"):
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

        return CryptoSigner(load_pem_private_key(path.read_bytes(), password))
