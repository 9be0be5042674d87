"""``nextscale explain``: the chain from a picture back to its images, and every place where it can break."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement as PlainStatement

from keys_for_tests import make_key
from nextscale import Generator, checkpoint
from nextscale.cli import main
from nextscale.integrity.ledger import EMPTY, FILE, Ledger, follow
from nextscale.integrity.signatures import sign_folder
from nextscale.models.hub import PROVENANCE
from runs_for_tests import make_home, tiny_run, train_quietly


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and a prior that were trained one from the other, a picture by them, another run, a key."""
    place = make_home(tmp_path_factory.mktemp("chain"))
    train_quietly(tiny_run("tokenizer", place), place / "tokens")
    run = tiny_run("prior", place)
    run = run.model_copy(
        update={
            "tokenizer_from": str(place / "tokens" / "model"),
            "ledger": run.ledger.model_copy(update={"fingerprint": True}),
        }
    )
    train_quietly(run, place / "prior", curves=True)  # what leaves them out would be found in memory
    train_quietly(tiny_run("prior", place, seed=1), place / "other")
    words = [
        "sample",
        str(place / "prior" / "model"),
        "--labels",
        "0",
        "--seeds",
        "7",
        "--png",
        "--device",
        "cpu",
    ]
    assert main([*words, "--out", str(place / "pictures-made")]) == 0
    make_key(place, "alice")
    return place


@pytest.fixture
def chain(home: Path, tmp_path: Path) -> Path:
    """A copy to be spoiled: the run, its model, the picture."""
    shutil.copytree(home / "prior", tmp_path / "prior")
    shutil.copyfile(_picture(home), tmp_path / "picture.png")
    return tmp_path


def _picture(home: Path) -> Path:
    return next(file for file in (home / "pictures-made").rglob("*.png") if file.name != "grid.png")


def _explain(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["explain", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out + err


def test_from_a_picture_to_the_images(chain: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = _explain(capsys, chain / "picture.png", "--model", chain / "prior" / "model")
    assert code == 0, text
    lines = text.splitlines()
    for words in (
        "class 0", "seed 7", "files: all 3 are those that provenance.json is about", "run prior: step 12",
        "files of nextscale, together ", "packages by their RECORD", "training images: ", "Merkle root ",
        "approved by: nobody was asked", "ledger.jsonl, ", "it recorded this model",
    ):  # fmt: skip
        assert words in text, words
    where = next(number for number, line in enumerate(lines) if line.strip().startswith("tokenizer: "))
    assert lines[where + 1].strip().startswith("run tokens: step 12")  # the statement within the statement
    assert any("training images" in line for line in lines[where:])


def test_the_statement_is_one_of_in_toto(home: Path) -> None:
    """Read by the library of in-toto itself, with no field that it does not know."""
    tree = json.loads((home / "prior" / "model" / PROVENANCE).read_text())
    plain = json_format.ParseDict(tree, statement_pb2.Statement())
    PlainStatement.copy_from_pb(plain).validate()
    provenance = json_format.ParseDict(tree["predicate"], provenance_pb2.Provenance())
    assert provenance.run_details.metadata.started_on.ToDatetime().year >= 2026
    names = [item.name for item in provenance.build_definition.resolved_dependencies]
    assert {"nextscale", "torch RECORD", "training images", "tokenizer"} <= set(names)
    assert [item.name for item in plain.subject] == [
        "config.json", "prior.safetensors", "tokenizer.safetensors"
    ]  # fmt: skip
    for item in plain.subject:
        assert item.digest["sha256"] == checkpoint.digest(home / "prior" / "model" / item.name)


def test_the_card_links_it_and_publishing_keeps_it(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = home / "prior" / "model"
    assert f"[{PROVENANCE}]({PROVENANCE})" in (model / "README.md").read_text()
    assert main(["publish", str(model), "--out", str(tmp_path / "new"), "--name", "Chain"]) == 0
    assert (tmp_path / "new" / PROVENANCE).read_bytes() == (model / PROVENANCE).read_bytes()
    card = (tmp_path / "new" / "README.md").read_text()
    assert "# Chain" in card and card.count("## How it was made") == 1
    code, text = _explain(capsys, tmp_path / "new")
    assert code == 0 and "ledger: not here, --run says" in text
    assert _explain(capsys, tmp_path / "new", "--run", home / "prior")[0] == 0


def test_a_statement_about_other_files_is_left_behind(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "prior" / "model", tmp_path / "model")
    _edit(tmp_path / "model" / PROVENANCE, lambda tree: tree["subject"].pop())
    assert main(["publish", str(tmp_path / "model"), "--out", str(tmp_path / "new")]) == 0
    assert f"{PROVENANCE} is left behind" in capsys.readouterr().out
    assert not (tmp_path / "new" / PROVENANCE).exists()


def _edit(path: Path, change: Callable[[Any], object]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def _dependency(tree: Any, name: str) -> Any:
    dependencies = tree["predicate"]["buildDefinition"]["resolvedDependencies"]
    return next(item for item in dependencies if item["name"] == name)


def _flip_weights(model: Path, _: Path) -> None:
    content = bytearray((model / "prior.safetensors").read_bytes())
    content[-9] ^= 1
    (model / "prior.safetensors").write_bytes(content)


def _statement(change: Callable[[Any], object]) -> Callable[[Path, Path], None]:
    return lambda model, _: _edit(model / PROVENANCE, change)


def _hide_data(tree: Any) -> None:
    _dependency(tree, "training images")["digest"]["nextscaleMerkleRoot"] = "0" * 64


def _other_parent(tree: Any) -> None:
    _dependency(tree, "tokenizer")["digest"]["sha256"] = "0" * 64


def _no_parent(tree: Any) -> None:
    _dependency(tree, "tokenizer")["annotations"]["statement"]["predicateType"] = "https://else.where"


def _approve(tree: Any) -> None:
    inside = tree["predicate"]["buildDefinition"]["internalParameters"]
    inside["approval"] = {"names": ["alice", "bob"], "policy": "f" * 64}


def _other_run(model: Path, home: Path) -> None:
    """The statement of another model, with the files of this one."""
    stolen = json.loads((home / "other" / "model" / PROVENANCE).read_text())
    stolen["subject"] = json.loads((model / PROVENANCE).read_text())["subject"]
    (model / PROVENANCE).write_text(json.dumps(stolen))


def _another_ledger(model: Path, home: Path) -> None:
    shutil.copyfile(home / "other" / FILE, model.parent / FILE)
    shutil.rmtree(model.parent / "checkpoints")


def _ledger_written_anew(model: Path, _: Path) -> None:
    """Sound in itself, and with the statement's own first record; but what it trained on is gone."""
    records = list(follow(model.parent / FILE))
    (model.parent / FILE).unlink()
    shutil.rmtree(model.parent / "checkpoints")
    with Ledger(model.parent / FILE, EMPTY) as forged:
        for record in records:
            kept = {key: value for key, value in record.items() if key not in ("number", "previous", "hash")}
            if kept["kind"] != "data":
                forged.append(kept.pop("kind"), **kept)


ATTACKS: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "a bit of the weights": (_flip_weights, "prior.safetensors is not the one that its statement is about"),
    "weights removed": (lambda model, _: (model / "prior.safetensors").unlink(), "safetensors is missing"),
    "a file added": (lambda model, _: (model / "more.bin").write_text("x"), "says nothing of more.bin"),
    "the statement removed": (lambda model, _: (model / PROVENANCE).unlink(), "nothing says how this model"),
    "no JSON": (lambda model, _: (model / PROVENANCE).write_text("{"), "is no statement of a training"),
    "no statement": (_statement(dict.clear), "is no statement of a training"),
    "very deep": (lambda model, _: (model / PROVENANCE).write_text("[" * 99999), "is no statement of a"),
    "of something else": (
        _statement(lambda tree: tree["predicate"]["buildDefinition"].update(buildType="urn:x")),
        "about 'urn:x'",
    ),
    "other images named": (_statement(_hide_data), "has no record of a model with this provenance.json"),
    "an approval made up": (_statement(_approve), "has no record of a model with this provenance.json"),
    "another parent": (_statement(_other_parent), "which the statement of its model is not about"),
    "a parent's statement that is none": (_statement(_no_parent), "of what the run started from is none"),
    "the statement of another run": (_other_run, "is that of another run than"),
    "another ledger": (_another_ledger, "is that of another run than"),
    "a ledger written anew": (_ledger_written_anew, "is not the one that"),
}  # fmt: skip


@pytest.mark.attack(by="explain", names="the link that breaks")
@pytest.mark.parametrize("attack", ATTACKS)
def test_where_the_chain_breaks_is_named(
    attack: str, chain: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, expected = ATTACKS[attack]
    model = chain / "prior" / "model"
    assert _explain(capsys, model)[0] == 0  # the honest twin
    spoil(model, home)
    code, text = _explain(capsys, model)
    broken = [line for line in text.splitlines() if line.startswith("BROKEN: ")]
    assert code == 1 and any(expected in line for line in broken), text


@pytest.mark.attack(by="explain", names="both models")
def test_a_picture_of_another_model_is_told(
    chain: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = _explain(capsys, chain / "picture.png", "--model", home / "other" / "model")
    assert code == 1 and "BROKEN: " in text and "was made by model" in text


@pytest.mark.attack(by="signature", names="the model")
def test_a_statement_is_signed_with_the_weights(
    chain: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = chain / "prior" / "model"
    trusted = ["--verify-with", home / "alice.pem"]
    code, text = _explain(capsys, model, *trusted)
    assert code == 1 and "is not signed" in text
    sign_folder(model, key=home / "alice.key")
    code, text = _explain(capsys, model, *trusted)
    assert code == 0 and "signed every file" in text
    assert "signature: there is one" in _explain(capsys, model)[1]
    _edit(model / PROVENANCE, _approve)
    code, text = _explain(capsys, model, *trusted)
    assert code == 1 and "is not what was signed" in text
    with pytest.raises(ValueError, match="is not what was signed"):
        Generator.load(model, verify_with=home / "alice.pem")


def test_what_nothing_is_said_about(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = _explain(capsys, home / "given")
    assert code == 1 and f"holds no {PROVENANCE}" in text
    code, text = _explain(capsys, _picture(home))
    assert code == 0 and "model: not given, --model goes on from here" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no model 'nowhere'"),
        (["prior/model", "--model", "other/model"], "--model belongs to a picture"),
        (["prior/model", "--run", "pictures"], "holds no ledger.jsonl"),
        (["picture.png", "--run", "prior"], "give --model too"),
        (["alice.pem"], "is not a readable PNG file"),
        (["pictures"], "is no model folder"),
    ],
)
def test_refusals(
    words: list[str], message: str, home: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(home)
    shutil.copyfile(_picture(home), home / "picture.png")
    code, text = _explain(capsys, *words)
    assert code == 2 and message in text, text
