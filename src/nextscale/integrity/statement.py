"""How a model was made, beside its weights: an in-toto statement whose predicate is SLSA provenance.

Special here: it names the run's ledger by its first record and its head, so whoever has both can hold one
against the other. A statement of the model that the run started from lies inside this one, whole: the chain
does not end where a folder was removed. It proves nothing by itself; it is signed with the weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nextscale import checkpoint
from nextscale.integrity.approval import Leave
from nextscale.integrity.ledger import Head
from nextscale.models.hub import PROVENANCE, SIGNATURE

TYPE: Literal["https://in-toto.io/Statement/v1"] = "https://in-toto.io/Statement/v1"
PREDICATE: Literal["https://slsa.dev/provenance/v1"] = "https://slsa.dev/provenance/v1"
_BUILD = "urn:nextscale:training:1"
_MOST_BYTES = 2**24
#: Files that may change without the model being another: the card, and what is written about the files.
_NO_SUBJECTS = ("README.md", PROVENANCE, SIGNATURE)
_CARD = f"""
## How it was made

[{PROVENANCE}]({PROVENANCE}) says from which images, with which code and settings, and by whose leave
(in-toto, SLSA provenance). `nextscale explain` holds it against what is here.
"""


@dataclass(frozen=True)
class Made:
    """What a run knows of a model that it has just written."""

    run: str  #: name of its folder
    step: int
    started: str  #: time of its first start
    facts: Mapping[str, Any]  #: settings, inputs, processes, device, versions (`facts_of` of the run)
    code: Mapping[str, str]  #: lines of the fingerprint; empty: nobody looked
    data: Mapping[str, Mapping[str, Any]]  #: root and count of each set of images; empty: nobody looked
    leave: Leave | None  #: by whose leave; None: nobody was asked
    ledger: str  #: hash of its first record
    head: Head
    parents: Mapping[str, Path]  #: name of an input -> folder of the model that it came from


class Described(BaseModel):
    """A file, a package, a set of images: by name and digest (in-toto: ResourceDescriptor)."""

    model_config = ConfigDict(frozen=True)  # in-toto: fields that are not known are left alone
    name: str = Field("", max_length=500)
    uri: str = Field("", max_length=2000)
    digest: dict[str, str] = {}
    annotations: dict[str, Any] = {}


class Definition(BaseModel):
    """What was done with what."""

    model_config = ConfigDict(frozen=True)
    buildType: str
    externalParameters: dict[str, Any]
    internalParameters: dict[str, Any] = {}
    resolvedDependencies: tuple[Described, ...] = ()


class Details(BaseModel):
    """Where and when."""

    model_config = ConfigDict(frozen=True)
    builder: dict[str, Any]
    metadata: dict[str, Any] = {}
    byproducts: tuple[Described, ...] = ()


class Predicate(BaseModel):
    """SLSA provenance."""

    model_config = ConfigDict(frozen=True)
    buildDefinition: Definition
    runDetails: Details


class Statement(BaseModel):
    """What lies beside the weights."""

    model_config = ConfigDict(frozen=True)
    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Described, ...] = Field(min_length=1)
    predicateType: Literal["https://slsa.dev/provenance/v1"]
    predicate: Predicate

    @property
    def definition(self) -> Definition:
        """What was done with what."""
        return self.predicate.buildDefinition

    def files(self) -> dict[str, str]:
        """SHA-256 of each file that it is about."""
        return {item.name: item.digest.get("sha256", "") for item in self.subject}


def attach(folder: Path, made: Made) -> None:
    """Write the statement into a model's folder, and have the card link it."""
    checkpoint.write_json(folder / PROVENANCE, _statement(folder, made))
    _link(folder / "README.md")


def carry_over(source: Path, target: Path) -> bool:
    """Copy a statement to a folder that has the same model, and say whether it has."""
    if not (source / PROVENANCE).is_file() or read_statement(source).files() != _subjects(target):
        return False
    shutil.copyfile(source / PROVENANCE, target / PROVENANCE)
    _link(target / "README.md")
    return True


def _link(card: Path) -> None:
    if card.is_file():
        checkpoint.write_file(card, (card.read_text() + _CARD).encode())


def read_statement(folder: Path) -> Statement:
    """The statement in a model's folder.

    Raises:
        ValueError: there is none, or it is not one of a training by nextscale.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {PROVENANCE}: nothing says how this model was made (it was not written by a "
            "training with a ledger, or was changed since)"
        )
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} has more than {_MOST_BYTES} bytes: it is no statement of nextscale")
    try:
        return statement_in(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no statement of a training: {' '.join(str(error).split())[:300]}"
        ) from error


def statement_in(tree: Any) -> Statement:
    """A statement from JSON. Raises ValueError."""
    try:
        found = Statement.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if found.definition.buildType != _BUILD:
        raise ValueError(f"it is about {found.definition.buildType!r}, not {_BUILD}")
    return found


def other_files(folder: Path, statement: Statement) -> list[str]:
    """Which files of a model are not those that a statement is about, in words."""
    stated, there = statement.files(), _subjects(folder)
    words = {True: "is not the one that its statement is about", False: "is missing"}
    found = [f"{name} {words[name in there]}" for name in stated if there.get(name) != stated[name]]
    return found + [f"its statement says nothing of {name}" for name in there if name not in stated]


def _subjects(folder: Path) -> dict[str, str]:
    files = sorted(item for item in folder.iterdir() if item.is_file() and item.name[0] != ".")
    return {item.name: checkpoint.digest(item) for item in files if item.name not in _NO_SUBJECTS}


def _statement(folder: Path, made: Made) -> dict[str, Any]:
    facts = made.facts
    internal = {name: facts[name] for name in ("processes", "device")}
    internal |= {"run": made.run, "step": made.step}
    if made.leave is not None:
        internal["approval"] = vars(made.leave)
    ledger = {
        "name": "ledger.jsonl", "digest": {"sha256": made.head.hash},
        "annotations": {"records": made.head.number + 1, "meaning": "hash of its last record"},
    }  # fmt: skip
    return {
        "_type": TYPE,
        "subject": [_described(name, digest) for name, digest in _subjects(folder).items()],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD,
                "externalParameters": facts["settings"],
                "internalParameters": internal,
                "resolvedDependencies": [*_packages(made), *_images(made), *_inputs(made)],
            },
            "runDetails": {
                "builder": {"id": "urn:nextscale:train", "version": facts["versions"]},
                "metadata": {
                    "invocationId": made.ledger, "startedOn": made.started,
                    "finishedOn": datetime.now(UTC).isoformat(timespec="seconds"),
                },
                "byproducts": [ledger],
            },
        },
    }  # fmt: skip


def _described(name: str, digest: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": digest}}


def _packages(made: Made) -> list[dict[str, Any]]:
    """Our own code, and the packages that were in memory (by their RECORD)."""
    if not made.code:
        return []
    own = sorted(f"{name} {digest}\n" for name, digest in made.code.items() if name.startswith("code:"))
    version = made.facts["versions"]["nextscale"]
    code = _described("nextscale", hashlib.sha256("".join(own).encode()).hexdigest())
    found = [{**code, "uri": f"pkg:pypi/nextscale@{version}", "annotations": {"files": len(own)}}]
    for name, text in made.code.items():
        kind, _, package = name.partition(":")
        version, _, record = text.partition(" ")
        if kind == "package" and len(record) == 64:
            found.append({**_described(f"{package} RECORD", record), "uri": f"pkg:pypi/{package}@{version}"})
    return found


def _images(made: Made) -> list[dict[str, Any]]:
    """Sets of images: the root of a Merkle tree is no digest of a file, so it has a name of its own."""
    return [
        {
            "name": f"{name} images", "digest": {"nextscaleMerkleRoot": item["root"]},
            "annotations": {"count": item["count"]},
        }
        for name, item in made.data.items()
    ]  # fmt: skip


def _inputs(made: Made) -> list[dict[str, Any]]:
    """What else the run started from, with the statements that are known of it."""
    found = []
    for name, digest in made.facts["inputs"].items():
        item = _described(name.removesuffix("_sha256"), digest)
        folder = made.parents.get(name)
        if folder is not None and (folder / PROVENANCE).is_file():
            item["annotations"] = {"statement": json.loads((folder / PROVENANCE).read_text())}
        found.append(item)
    return found
