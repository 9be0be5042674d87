"""Signed models: what was changed is refused before it is read, and other tools agree with us."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from keys_for_tests import make_certificates, make_key
from models_for_tests import model_settings, random_generator
from nextscale import Generator, checkpoint
from nextscale.cli import main
from nextscale.integrity.signatures import check_signature, sign_folder

TOOL = str(Path(sys.executable).parent / "model_signing")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that alice has signed, the same unsigned, and keys of alice and eve."""
    place = tmp_path_factory.mktemp("signed")
    random_generator(settings=model_settings()).save(place / "unsigned")
    shutil.copytree(place / "unsigned", place / "model")
    make_key(place, "alice")
    make_key(place, "eve")
    sign_folder(place / "model", key=place / "alice.key")
    return place


@pytest.fixture
def model(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "model", tmp_path / "model"))


def _tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


def test_a_signed_model_loads_and_makes_the_same_images(home: Path) -> None:
    signed = Generator.load(home / "model", verify_with=home / "alice.pem")
    plain = Generator.load(home / "unsigned")
    assert (signed(["frog"], seeds=[3]).images == plain(["frog"], seeds=[3]).images).all()


def _flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def _flip_in_prior(model: Path, home: Path) -> None:
    _flip(model / "prior.safetensors", -100)


def _edit_config(model: Path, home: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["sampling"]["top_k"] = 2
    checkpoint.write_json(model / "config.json", config)


def _swap(model: Path, home: Path) -> None:
    other = random_generator(settings=model_settings(), seed=9)
    other.save(model.parent / "other")
    shutil.copyfile(model.parent / "other" / "prior.safetensors", model / "prior.safetensors")


def _remove(model: Path, home: Path) -> None:
    (model / "README.md").unlink()


def _add(model: Path, home: Path) -> None:
    (model / "modeling.py").write_text("print('hello')")


def _unsign(model: Path, home: Path) -> None:
    (model / "model.sig").unlink()


def _sign_as_eve(model: Path, home: Path) -> None:
    _edit_config(model, home)
    sign_folder(model, key=home / "eve.key")


def _forge_payload(model: Path, home: Path) -> None:
    """The digests of changed files, under the old signature."""
    _sign_as_eve(model, home)
    bundle = json.loads((model / "model.sig").read_text())
    good = json.loads((home / "model" / "model.sig").read_text())
    good["dsseEnvelope"]["payload"] = bundle["dsseEnvelope"]["payload"]
    checkpoint.write_json(model / "model.sig", good)


def _garbage(model: Path, home: Path) -> None:
    (model / "model.sig").write_text("{}")


@pytest.mark.attack(by="signature", names="the file")
@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (_flip_in_prior, "prior.safetensors"), (_edit_config, "config.json"), (_swap, "prior.safetensors"),
        (_remove, "README.md"), (_add, "modeling.py"), (_unsign, "is not signed"),
        (_sign_as_eve, "Key mismatch"), (_forge_payload, "InvalidSignature"), (_garbage, "dsseEnvelope"),
    ],
)  # fmt: skip
def test_a_changed_model_is_refused_by_name(
    attack: Callable[[Path, Path], None],
    named: str,
    model: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    check_signature(model, home / "alice.pem")  # the honest twin
    attack(model, home)
    with pytest.raises(ValueError, match=named):
        Generator.load(model, verify_with=home / "alice.pem")
    assert main(["verify", str(model), "--verify-with", str(home / "alice.pem")]) == 1
    assert named in capsys.readouterr().out


def test_nothing_is_read_before_the_signature_is_checked(model: Path, home: Path) -> None:
    (model / "config.json").write_text("no JSON")
    with pytest.raises(ValueError, match="is not a valid model config"):
        Generator.load(model)
    with pytest.raises(ValueError, match=r"Hash mismatch for 'config\.json'"):
        Generator.load(model, verify_with=home / "alice.pem")


@pytest.mark.attack(by="signature", names="the file")
def test_a_signature_that_ignores_the_weights_vouches_for_nothing(model: Path, home: Path) -> None:
    (model / "model.sig").unlink()
    ignored = ["--ignore-paths", model / "prior.safetensors"]
    made = _tool(
        "sign",
        "key",
        model,
        "--private_key",
        home / "alice.key",
        "--signature",
        model / "model.sig",
        *ignored,
    )
    assert made.returncode == 0, made.stderr
    with pytest.raises(ValueError, match=r"prior\.safetensors"):
        check_signature(model, home / "alice.pem")


@pytest.mark.slow
def test_the_plain_command_verifies_ours_and_we_verify_its(model: Path, home: Path) -> None:
    asked = ["verify", "key", model, "--signature", model / "model.sig", "--public_key"]
    assert _tool(*asked, home / "alice.pem").returncode == 0
    assert _tool(*asked, home / "eve.pem").returncode != 0
    (model / "model.sig").unlink()
    made = _tool(
        "sign", "key", model, "--private_key", home / "alice.key", "--signature", model / "model.sig"
    )
    assert made.returncode == 0, made.stderr
    check_signature(model, home / "alice.pem")
    with pytest.raises(ValueError, match="Key mismatch"):
        check_signature(model, home / "eve.pem")
    _flip(model / "tokenizer.safetensors", -50)
    with pytest.raises(ValueError, match="tokenizer"):
        check_signature(model, home / "alice.pem")


def test_certificates_lead_to_their_authority(home: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(home / "unsigned", tmp_path / "model"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "others").mkdir()
    key, certificate, root = make_certificates(tmp_path / "mine")
    _, _, other_root = make_certificates(tmp_path / "others")
    arguments = ["--key", str(key), "--certificate", str(certificate)]
    assert main(["sign", str(model), *arguments]) == 0
    check_signature(model, root)
    with pytest.raises(ValueError, match="certificate"):
        check_signature(model, other_root)


def test_links_as_in_the_cache_of_the_hub_are_followed(model: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for file in model.iterdir():
        (tmp_path / "links" / file.name).symlink_to(file)
    check_signature(tmp_path / "links", home / "alice.pem")
    _flip(model / "prior.safetensors", -100)
    with pytest.raises(ValueError, match=r"prior\.safetensors"):
        check_signature(tmp_path / "links", home / "alice.pem")


def test_an_encrypted_key_wants_its_password(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(home / "unsigned", tmp_path / "model"))
    key, public = make_key(tmp_path, "bob", password=b"secret")
    assert main(["sign", str(model), "--key", str(key)]) == 2
    assert "cannot be signed" in capsys.readouterr().err and not (model / "model.sig").exists()
    monkeypatch.setenv("NEXTSCALE_KEY_PASSWORD", "secret")
    assert main(["sign", str(model), "--key", str(key)]) == 0
    check_signature(model, public)


@pytest.mark.parametrize("what", ["sample", "edit", "serve"])
def test_commands_refuse_a_changed_model(
    what: str, model: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _edit_config(model, home)
    picture = Path(__file__).parents[1] / "docs" / "images" / "page-generate.png"
    more = {
        "sample": ["--labels", "none"],
        "edit": [str(picture), "--box", "0,0,1,0.5"],
        "serve": ["--port", "0"],
    }
    arguments = [what, str(model), *more[what], "--verify-with", str(home / "alice.pem")]
    assert main(arguments) == 2
    assert "Hash mismatch for 'config.json'" in capsys.readouterr().err


def test_a_digest_of_a_model_does_not_depend_on_its_signature(home: Path) -> None:
    from nextscale.generate.folder import model_digest

    assert model_digest(home / "model") == model_digest(home / "unsigned")


def test_a_signed_model_is_written_anew_without_the_signature(model: Path) -> None:
    Generator.load(model).save(model)
    assert not (model / "model.sig").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sign", "MODEL"], "give --key or --keyless"),
        (["sign", "MODEL", "--key", "alice.key", "--keyless"], "give --key or --keyless"),
        (["sign", "MODEL", "--keyless", "--certificate", "a.crt"], "--certificate belongs to a key"),
        (["sign", "MODEL", "--key", "alice.key", "--chain", "a.crt"], "--chain leads from a certificate"),
        (["sign", "MODEL", "--key", "alice.key", "--identity-token", "t"], "--identity-token belongs to"),
        (["sign", "MODEL", "--key", "gone.key"], "gone.key"),
        (["sign", "nowhere", "--key", "alice.key"], "nowhere is no model folder"),
        (["verify", "MODEL"], "--verify-with says whose signature"),
        (["verify", "nowhere", "--verify-with", "alice.pem"], "neither a run of nextscale nor a model"),
        (["sample", "MODEL", "--verify-with", "alice.key"], "is a private key"),
        (["sample", "MODEL", "--verify-with", "gone.pem"], "there is no file gone.pem"),
        (["sample", "MODEL", "--verify-with", "keyless:me"], "expected keyless:IDENTITY,ISSUER"),
    ],
)
def test_refusals(
    arguments: list[str], message: str, home: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(home)
    before = {file: file.read_bytes() for file in home.rglob("*") if file.is_file()}
    assert main([word.replace("MODEL", "model") for word in arguments]) == 2
    assert message in capsys.readouterr().err
    assert before == {file: file.read_bytes() for file in home.rglob("*") if file.is_file()}


def test_the_statement_names_every_file(home: Path) -> None:
    bundle = json.loads((home / "model" / "model.sig").read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    names = {item["name"] for item in statement["predicate"]["resources"]}
    assert names == {"README.md", "config.json", "prior.safetensors", "tokenizer.safetensors"}
