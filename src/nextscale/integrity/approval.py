"""An approval: what may be trained, with the signatures of those who looked at it (DSSE envelope).

Special here: it holds all lines of the fingerprint and all settings, so a refusal names what is other than
what was approved. It is about one run (by the name of its folder), one policy, and ends at a date.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nextscale import checkpoint
from nextscale.integrity.fingerprint import changes, first_few
from nextscale.integrity.policy import Policy

TYPE = "application/vnd.nextscale.approval+json"


@dataclass(frozen=True)
class Plan:
    """What is approved, or about to be trained."""

    run: str  #: name of its folder
    settings: dict[str, Any]
    inputs: dict[str, Any]  #: digests of what it starts from
    data: dict[str, Any]  #: root and number of each set of images
    code: dict[str, str]  #: lines of the fingerprint
    wrong: tuple[str, ...]  #: what the fingerprint says of files that are not what was installed

    def difference(self, other: Plan) -> str:
        """In what another plan is not this one, in words; empty: in nothing that matters."""
        if other.run != self.run:
            return f"the run is {other.run}, approved is {self.run}"
        for what, old, new in (
            ("settings", self.settings, other.settings),
            ("inputs", self.inputs, other.inputs),
        ):
            name = _first_other(old, new)
            if name:
                return f"{what}: {name} is not as approved"
        if other.data != self.data:
            return f"images: {_first_other(self.data, other.data)} images are not those that were approved"
        refused, _ = changes(self.code, other.code)
        refused += [text for text in other.wrong if text not in self.wrong]
        return first_few(refused)


@dataclass(frozen=True)
class Leave:
    """By whose leave a run starts."""

    names: tuple[str, ...]
    keyids: tuple[str, ...]
    policy: str  #: its digest
    approval: str  #: SHA-256 of what was signed
    until: str


def approve(path: Path, plan: Plan, signer: Any, policy: Policy, *, until: str) -> list[str]:
    """Sign a plan, alone or beside those who did before; the file is written whole.

    Args:
        path: of the approval, which may be there.
        plan: as this process sees it.
        signer: a private key.
        policy: that has its public key.
        until: the day that it ends, as ``2026-12-31``; of a file that is there, that of the file counts.

    Returns:
        Who has signed so far.

    Raises:
        ValueError: the key is not one of the policy, or the file approves something else.
    """
    from securesystemslib.dsse import Envelope

    if signer.public_key.keyid not in [key.keyid for key in policy.keys.values()]:
        raise ValueError("this key is none of the policy's: its owner cannot approve")
    if path.exists():
        envelope = _read(path)
        _check_content(path, envelope, plan, policy)
    else:
        content = {"policy": policy.digest, "until": until, "plan": vars(plan)}
        envelope = Envelope(json.dumps(content, sort_keys=True, indent=1).encode(), TYPE, {})
    envelope.sign(signer)
    checkpoint.write_json(path, envelope.to_dict())
    return sorted(policy.name_of(keyid) for keyid in _accepted(envelope, policy))


def check_approval(path: Path, plan: Plan, policy: Policy) -> Leave:
    """Hold a run that is about to start against an approval.

    Raises:
        ValueError: too few have signed, or something else than this, or it has ended.
    """
    envelope = _read(path)
    keyids = sorted(_accepted(envelope, policy))
    names = tuple(sorted(policy.name_of(keyid) for keyid in keyids))
    if len(names) < policy.threshold:
        others = len(envelope.signatures) - len(names)
        bad = f"; {others} signatures are of other keys, or not of this text" if others else ""
        raise ValueError(
            f"{path} has {len(names)} of {policy.threshold} approvals ({', '.join(names) or 'nobody'}){bad}: "
            "let people of the policy sign it with nextscale approve"
        )
    until = _check_content(path, envelope, plan, policy)
    return Leave(names, tuple(keyids), policy.digest, hashlib.sha256(envelope.payload).hexdigest(), until)


def _read(path: Path) -> Any:
    """An envelope. Raises ValueError."""
    from securesystemslib.dsse import Envelope

    if not path.is_file():
        raise ValueError(f"there is no approval {path}: make one with nextscale approve")
    try:
        envelope = Envelope.from_dict(json.loads(path.read_text()))
    except Exception as error:  # fields that are missing, or no base64, have errors of their own
        raise ValueError(f"{path} is no approval: {' '.join(str(error).split())}") from error
    if envelope.payload_type != TYPE:
        raise ValueError(f"{path} is no approval: it is of type {envelope.payload_type!r}")
    return envelope


def _check_content(path: Path, envelope: Any, plan: Plan, policy: Policy) -> str:
    """What was signed against what is at hand. Returns its last day."""
    try:
        content = json.loads(envelope.payload)
        approved = Plan(**content["plan"])
        until, ruled_by = str(content["until"]), content["policy"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no approval: {error!r}") from error
    if ruled_by != policy.digest:
        raise ValueError(f"{path} was given under another policy: let it be approved anew")
    if until < datetime.now(UTC).date().isoformat():
        raise ValueError(f"{path} ended on {until}: let it be approved anew")
    difference = approved.difference(plan)
    if difference:
        raise ValueError(f"{path} approves something else: {difference}")
    return until


def _accepted(envelope: Any, policy: Policy) -> set[str]:
    """The keys whose signatures hold, each once."""
    from securesystemslib.exceptions import VerificationError

    found = set()
    for key in policy.keys.values():
        try:
            found |= set(envelope.verify([key], 1))
        except VerificationError:
            continue
    return found


def _first_other(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    """The first entry in which two trees differ."""
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found = _first_other(before, after, f"{prefix}{name}.")
            if found:
                return found
        elif json.dumps(before) != json.dumps(after):
            return prefix + name
    return ""
