"""Signatures over model folders, in the format of OpenSSF model signing: its own command verifies ours, and
we verify what it signed.

Special here: a signature that leaves a file out would vouch for a model and not for its weights, so every
file of the folder must be among what was signed, whatever the signature says that it ignores.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nextscale import checkpoint
from nextscale.models import find_model
from nextscale.models.hub import SIGNATURE

#: Says that a signer is known by name: ``keyless:IDENTITY,ISSUER``.
KEYLESS = "keyless:"


def sign_folder(
    folder: Path, *, key: Path | None = None, password: bytes | None = None, certificate: Path | None = None,
    chain: Sequence[Path] = (), identity_token: str | None = None,
) -> Path:  # fmt: skip
    """Sign all files of a model folder; the signature lies in it, whole, and takes the place of an older one.

    Args:
        folder: of the model.
        key: private key (PEM, elliptic curve P-256, P-384 or P-521); None: keyless, by an account of an
            OpenID provider, which needs the network and a browser or a token.
        password: of the key.
        certificate: of the key (PEM), for those who verify with the certificates of an authority.
        chain: certificates between that one and the authority's.
        identity_token: of the account, in the place of a browser.

    Returns:
        The file.

    Raises:
        ValueError: no model folder, a key that cannot be used, no network, or model-signing is missing.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no model folder: it holds no config.json")
    with signing_library(f"{folder} cannot be signed"):
        from model_signing import hashing, signing

        config: Any = signing.Config()
        if certificate is not None and key is not None:
            config.use_certificate_signer(
                private_key=key, signing_certificate=certificate,
                certificate_chain=chain or [certificate],  # none at all would be refused
            )  # fmt: skip
        elif key is not None:
            config.use_elliptic_key_signer(private_key=key, password=password)
        else:
            config.use_sigstore_signer(identity_token=identity_token, use_ambient_credentials=True)
        ignored: Any = hashing.Config()
        config.set_hashing_config(ignored.set_ignored_paths(paths=[SIGNATURE]))
        with TemporaryDirectory() as place:
            made = Path(place) / SIGNATURE
            config.sign(folder, made)
            checkpoint.write_json(folder / SIGNATURE, json.loads(made.read_text()))
    return folder / SIGNATURE


def check_signature(folder: Path, trusted: str | Path) -> None:
    """Read all files of a model folder and hold them against its signature, and that against who is trusted.

    Args:
        folder: of the model.
        trusted: a file with a public key or with certificates of authorities (PEM), or
            ``keyless:IDENTITY,ISSUER``, which needs the network.

    Raises:
        ValueError: unsigned, signed by somebody else, or other than what was signed.
    """
    signature = folder / SIGNATURE
    if not signature.is_file():
        raise ValueError(
            f"{folder} is not signed: it holds no {SIGNATURE}; sign it with nextscale sign, or leave out "
            "verify_with"
        )
    with signing_library(f"{folder} is not what was signed, or {trusted} did not sign it"):
        from model_signing import verifying

        config: Any = verifying.Config()
        _trust(config, trusted)
        config.set_hashing_config(_as_it_was_hashed(signature))
        config.verify(folder, signature)
        left_out = _names(folder) - _signed_names(signature)
        if left_out:
            raise ValueError(f"the signature leaves out {', '.join(sorted(left_out))}")


def find_trusted_model(model: str | Path, verify_with: str | Path = "", **hub: Any) -> Path:
    """As `find_model`; with ``verify_with`` its signature is checked before anything in it is read.

    Raises:
        ValueError: as `find_model` and `check_signature`.
    """
    folder = find_model(model, **hub)
    if verify_with:
        check_signature(folder, verify_with)
    return folder


def _trust(config: Any, trusted: str | Path) -> None:
    if str(trusted).startswith(KEYLESS):
        identity, _, issuer = str(trusted).removeprefix(KEYLESS).partition(",")
        if not identity or not issuer:
            raise ValueError(f"expected {KEYLESS}IDENTITY,ISSUER")
        config.use_sigstore_verifier(identity=identity, oidc_issuer=issuer)
        return
    path = Path(trusted).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give a public key or a certificate in PEM")
    text = path.read_bytes()
    if b"PRIVATE KEY" in text:
        raise ValueError(f"{path} is a private key: give the public one, and keep this one to yourself")
    if b"BEGIN CERTIFICATE" in text:
        config.use_certificate_verifier(certificate_chain=[path])
    else:
        config.use_elliptic_key_verifier(public_key=path)


def _as_it_was_hashed(signature: Path) -> Any:
    """How the files were hashed; links, as the hub's cache has them, count as the files that they lead to."""
    from model_signing import hashing

    how = _statement(signature)["predicate"]["serialization"]
    config: Any = hashing.Config()
    if how["method"] == "shards":
        config.use_shard_serialization(hashing_algorithm=how["hash_type"], shard_size=how["shard_size"])
    else:
        config.use_file_serialization(hashing_algorithm=how["hash_type"])
    config.set_allow_symlinks(True)  # else the settings above are not heeded
    return config.set_ignored_paths(paths=[SIGNATURE])


def _statement(signature: Path) -> dict[str, Any]:
    """What is signed. Says nothing about by whom."""
    envelope = json.loads(signature.read_text())["dsseEnvelope"]
    statement: dict[str, Any] = json.loads(base64.b64decode(envelope["payload"]))
    return statement


def _signed_names(signature: Path) -> set[str]:
    resources = _statement(signature)["predicate"]["resources"]
    return {resource["name"].partition(":")[0] for resource in resources}  # a shard is FILE:START:END


def _names(folder: Path) -> set[str]:
    files = {str(item.relative_to(folder)) for item in folder.rglob("*") if item.is_file()}
    return {name for name in files if name != SIGNATURE and not name.startswith(".git")}


@contextmanager
def signing_library(complaint: str) -> Iterator[None]:
    """Turn the many errors of the libraries that sign into one ValueError that begins with a complaint."""
    try:
        yield
    except ImportError as error:
        raise ValueError(
            "signatures need the package model-signing: pip install 'nextscale[sign]'"
        ) from error
    except Exception as error:  # a wrong key, a damaged file, no network: every layer has errors of its own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{complaint}: {reason}") from error
