"""From a picture or a model back to what it was made from, link by link, or to where the chain breaks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextscale import checkpoint
from nextscale.generate.folder import model_digest
from nextscale.generate.provenance import read_png
from nextscale.integrity.found import look
from nextscale.integrity.ledger import FILE, LedgerError, follow
from nextscale.integrity.signatures import check_signature
from nextscale.integrity.statement import Statement, other_files, read_statement, statement_in
from nextscale.models.hub import PROVENANCE, SIGNATURE

#: Statements within statements that are followed.
_DEEPEST = 8


@dataclass
class Chain:
    """What is known, from the end of the chain to its beginning."""

    lines: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  #: where it breaks


def explain_picture(picture: Path, model: Path | None, chain: Chain) -> None:
    """What a picture says of itself, and whether it names this model.

    Raises:
        ValueError: no PNG file with a record.
    """
    _, record = read_png(picture)
    label = "no class" if record.label is None else f"class {record.label} ({record.class_name})"
    how = f"{record.edit.task} of a given image, " if record.edit else ""
    chain.lines.append(
        f"picture {picture}: {how}{label}, seed {record.seed}, {record.dtype} on {record.device}, by model "
        f"{record.model_digest[:12]} (what the file says; nextscale reproduce makes it again)"
    )
    if model is None:
        chain.lines.append("  model: not given, --model goes on from here")
    elif model_digest(model) != record.model_digest:
        chain.broken.append(
            f"{picture} was made by model {record.model_digest[:12]}, {model} is {model_digest(model)[:12]}"
        )


def explain_model(folder: Path, chain: Chain, *, run: Path | None = None, trusted: str = "") -> None:
    """What is known of a model, held against what is here.

    Args:
        folder: of the model.
        chain: takes what is found.
        run: folder of the run that made it, with its ledger; None: that around the model, where it is one.
        trusted: who must have signed the model, as `check_signature` takes it; empty: nobody.

    Raises:
        ValueError: no model folder.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no model folder: it holds no config.json")
    chain.lines.append(f"model {folder}: {model_digest(folder)[:12]}")
    _signature(folder, trusted, chain)
    try:
        statement = read_statement(folder)
    except ValueError as error:
        chain.broken.append(str(error))
        return
    others = other_files(folder, statement)
    chain.broken += [f"{folder}: {text}" for text in others]
    if not others:
        chain.lines.append(f"  files: all {len(statement.subject)} are those that {PROVENANCE} is about")
    _describe(statement, chain, indent="  ")
    place = run or (folder.resolve().parent if (folder.resolve().parent / FILE).is_file() else None)
    if place is None:
        chain.lines.append("  ledger: not here, --run says where the run's folder is")
    else:
        _hold_against_ledger(folder, statement, place, chain)


def _signature(folder: Path, trusted: str, chain: Chain) -> None:
    if trusted:
        try:
            check_signature(folder, trusted)
        except ValueError as error:
            chain.broken.append(str(error))
            return
        chain.lines.append(f"  signature: {trusted} signed every file")
    elif (folder / SIGNATURE).is_file():
        chain.lines.append("  signature: there is one, --verify-with says whose it must be")
    else:
        chain.lines.append("  signature: none")


def _describe(statement: Statement, chain: Chain, *, indent: str, depth: int = 0) -> None:
    """The run that a statement is about, and those before it."""
    definition, details = statement.definition, statement.predicate.runDetails
    inside, about = definition.internalParameters, details.metadata
    versions = ", ".join(f"{name} {text}" for name, text in dict(details.builder.get("version", {})).items())
    say = chain.lines.append
    say(
        f"{indent}run {inside.get('run')}: step {inside.get('step')}, {inside.get('processes')} processes on "
        f"{inside.get('device')}, {about.get('startedOn')} to {about.get('finishedOn')}"
    )
    loop = definition.externalParameters.get("loop")
    seed = loop.get("seed") if isinstance(loop, dict) else None
    say(f"{indent}  settings: seed {seed}, all of them in {PROVENANCE}; {versions}")
    _describe_code(statement, chain, indent=f"{indent}  ")
    approval = inside.get("approval")
    if isinstance(approval, dict):
        names = ", ".join(map(str, approval.get("names", ())))
        say(f"{indent}  approved by {names} (policy {str(approval.get('policy'))[:12]})")
    else:
        say(f"{indent}  approved by: nobody was asked")
    for item in definition.resolvedDependencies:
        if "nextscaleMerkleRoot" in item.digest:
            root, count = item.digest["nextscaleMerkleRoot"], item.annotations.get("count")
            say(f"{indent}  {item.name}: {count}, Merkle root {root[:12]}")
        elif not item.uri:
            say(f"{indent}  {item.name}: {item.digest.get('sha256', '')[:12]}")
            if "statement" in item.annotations:
                _describe_parent(item.annotations["statement"], item.digest, chain, f"{indent}    ", depth)


def _describe_code(statement: Statement, chain: Chain, *, indent: str) -> None:
    packages = [item for item in statement.definition.resolvedDependencies if item.uri]
    own = next((item for item in packages if item.name == "nextscale"), None)
    if own is None:
        chain.lines.append(f"{indent}code: no fingerprint was taken")
    else:
        chain.lines.append(
            f"{indent}code: {own.annotations.get('files')} files of nextscale, together "
            f"{own.digest.get('sha256', '')[:12]}; {len(packages) - 1} packages by their RECORD"
        )


def _describe_parent(tree: Any, digest: dict[str, str], chain: Chain, indent: str, depth: int) -> None:
    """The statement of a model that a run has started from; it must be about the file that it read."""
    if depth >= _DEEPEST:
        chain.broken.append(f"there are more than {_DEEPEST} statements within each other")
        return
    try:
        parent = statement_in(tree)
    except ValueError as error:
        chain.broken.append(f"the statement of what the run started from is none: {error}")
        return
    if digest.get("sha256") not in parent.files().values():
        chain.broken.append(
            f"the run started from a file {digest.get('sha256', '')[:12]}, which the statement of its model "
            "is not about"
        )
    _describe(parent, chain, indent=indent, depth=depth + 1)


def _hold_against_ledger(folder: Path, statement: Statement, run: Path, chain: Chain) -> None:
    """Whether the ledger of the run says what the statement says."""
    details = statement.predicate.runDetails
    ledger = next((item for item in details.byproducts if item.name == FILE), None)
    found = look(run, anchor=None)
    if found.differences:
        chain.broken.append(f"{run}: {found.differences[0]}")
        return
    if found.history.ledger != details.metadata.get("invocationId") or ledger is None:
        chain.broken.append(f"{run / FILE} is that of another run than {folder / PROVENANCE} names")
        return
    number = int(ledger.annotations.get("records", 0)) - 1
    record = _record(run / FILE, number)
    if record is None or record["hash"] != ledger.digest.get("sha256"):
        chain.broken.append(
            f"{run / FILE}: record {number} is not the one that {folder / PROVENANCE} names: the ledger was "
            "written anew"
        )
        return
    stated = checkpoint.digest(folder / PROVENANCE)
    exports = [item["files"].get(PROVENANCE) for item in found.history.exports.values()]
    if stated not in exports:
        chain.broken.append(f"{run / FILE} has no record of a model with this {PROVENANCE}")
        return
    chain.lines.append(
        f"  ledger: {run / FILE}, {found.history.head.number + 1:,} records, whole; it recorded this model"
    )


def _record(path: Path, number: int) -> dict[str, Any] | None:
    try:
        return next((record for record in follow(path) if record["number"] == number), None)
    except LedgerError:  # `look` has said so
        return None
