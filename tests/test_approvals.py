"""The rule of two people: a training starts with what they signed, and with nothing else."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from keys_for_tests import make_key
from nextscale.cli import main
from nextscale.integrity.approval import Plan, approve, check_approval
from nextscale.integrity.ledger import follow
from nextscale.integrity.policy import Policy, read_policy, read_signer
from nextscale.integrity.signatures import sign_folder
from nextscale.train.run import train_run
from runs_for_tests import make_home, tiny_run, train_quietly

TOMORROW = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
CODE = {"code:loop.py": "a" * 64, "package:torch": "2.13 " + "b" * 64, "hardware:cores": "2"}


def _plan(**changes: Any) -> Plan:
    given: dict[str, Any] = {
        "run": "run", "settings": {"optimizer": {"base_lr": 0.1}}, "inputs": {"tokenizer_sha256": "c" * 64},
        "data": {"training": {"root": "d" * 64, "count": 40}}, "code": dict(CODE), "wrong": (),
    }  # fmt: skip
    return Plan(**{**given, **changes})


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    for name in ("alice", "bob", "carol", "eve"):
        make_key(tmp_path, name)
    lines = ["threshold = 2", "[keys]", *(f'{name} = "{name}.pem"' for name in ("alice", "bob", "carol"))]
    (tmp_path / "policy.toml").write_text("\n".join(lines))
    return read_policy(tmp_path / "policy.toml")


def _approve(folder: Path, name: str, policy: Policy, plan: Plan, *, until: str = TOMORROW) -> list[str]:
    return approve(folder / "approval.json", plan, read_signer(folder / f"{name}.key"), policy, until=until)


def test_two_people_give_leave(tmp_path: Path, policy: Policy) -> None:
    assert _approve(tmp_path, "alice", policy, _plan()) == ["alice"]
    with pytest.raises(ValueError, match=r"has 1 of 2 approvals \(alice\)"):
        check_approval(tmp_path / "approval.json", _plan(), policy)
    assert _approve(tmp_path, "carol", policy, _plan()) == ["alice", "carol"]
    leave = check_approval(tmp_path / "approval.json", _plan(), policy)
    assert leave.names == ("alice", "carol") and leave.until == TOMORROW


def test_another_machine_and_more_packages_are_no_matter(tmp_path: Path, policy: Policy) -> None:
    _approve(tmp_path, "alice", policy, _plan())
    moved = {**CODE, "hardware:cores": "64", "package:tqdm": "4 " + "e" * 64}
    _approve(tmp_path, "bob", policy, _plan(code=moved))
    assert check_approval(tmp_path / "approval.json", _plan(code=moved), policy).names == ("alice", "bob")


@pytest.mark.attack(by="policy", names="who has signed")
def test_one_person_twice_is_one_person(tmp_path: Path, policy: Policy) -> None:
    for _ in range(2):
        assert _approve(tmp_path, "alice", policy, _plan()) == ["alice"]
    envelope = json.loads((tmp_path / "approval.json").read_text())
    (signature,) = envelope["signatures"]
    envelope["signatures"].append({**signature, "keyid": "0" * 64})
    (tmp_path / "approval.json").write_text(json.dumps(envelope))
    with pytest.raises(ValueError, match=r"has 1 of 2 approvals \(alice\); 1 signatures are of other keys"):
        check_approval(tmp_path / "approval.json", _plan(), policy)


@pytest.mark.attack(by="policy", names="both names of the key")
def test_one_key_under_two_names_is_no_policy(tmp_path: Path, policy: Policy) -> None:
    shutil.copyfile(tmp_path / "alice.pem", tmp_path / "alina.pem")
    (tmp_path / "twins.toml").write_text('[keys]\nalice = "alice.pem"\nalina = "alina.pem"\n')
    with pytest.raises(ValueError, match="alice and alina have one key"):
        read_policy(tmp_path / "twins.toml")


@pytest.mark.attack(by="policy", names="setting, images, file or package")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"run": "other"}, "the run is other"),
        ({"settings": {"optimizer": {"base_lr": 0.1001}}}, r"settings: optimizer\.base_lr"),
        ({"settings": {"optimizer": {"base_lr": 0.1, "more": 1}}}, r"settings: optimizer\.more"),
        ({"inputs": {"tokenizer_sha256": "0" * 64}}, "inputs: tokenizer_sha256"),
        ({"data": {"training": {"root": "0" * 64, "count": 40}}}, r"training\.root images"),
        ({"code": {**CODE, "code:loop.py": "0" * 64}}, r"code loop\.py was changed"),
        ({"code": {**CODE, "code:evil.py": "0" * 64}}, r"code evil\.py is new"),
        ({"code": {**CODE, "package:torch": "2.13 " + "0" * 64}}, "package torch was"),
        ({"code": {**CODE, "startup:evil.pth": "0" * 64}}, r"startup evil\.pth is new"),
        ({"wrong": ("torch/optim/adamw.py was changed",)}, r"torch/optim/adamw\.py was changed"),
    ],
)
def test_what_was_not_approved_is_named(
    changes: dict[str, Any], named: str, tmp_path: Path, policy: Policy
) -> None:
    for name in ("alice", "bob"):
        _approve(tmp_path, name, policy, _plan())
    check_approval(tmp_path / "approval.json", _plan(), policy)  # the honest twin
    with pytest.raises(ValueError, match=f"approves something else: .*{named}"):
        check_approval(tmp_path / "approval.json", _plan(**changes), policy)
    with pytest.raises(ValueError, match=named):  # nor does a third person sign it unseen
        _approve(tmp_path, "carol", policy, _plan(**changes))


@pytest.mark.attack(by="policy", names="who has signed")
def test_an_edited_approval_has_no_signatures_left(tmp_path: Path, policy: Policy) -> None:
    for name in ("alice", "bob"):
        _approve(tmp_path, name, policy, _plan())
    other = tmp_path / "other"
    other.mkdir()
    shutil.copyfile(tmp_path / "eve.key", other / "eve.key")
    plan = _plan(settings={"optimizer": {"base_lr": 1.0}})
    with pytest.raises(ValueError, match="none of the policy's"):
        _approve(other, "eve", policy, plan)
    envelope = json.loads((tmp_path / "approval.json").read_text())
    content = json.dumps({"policy": policy.digest, "until": TOMORROW, "plan": vars(plan)})
    envelope["payload"] = base64.b64encode(content.encode()).decode()
    (tmp_path / "approval.json").write_text(json.dumps(envelope))
    with pytest.raises(ValueError, match=r"has 0 of 2 approvals \(nobody\); 2 signatures"):
        check_approval(tmp_path / "approval.json", plan, policy)


@pytest.mark.attack(by="policy", names="its last day")
def test_an_approval_ends(tmp_path: Path, policy: Policy) -> None:
    for name in ("alice", "bob"):
        yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
        if name == "alice":
            _approve(tmp_path, name, policy, _plan(), until=yesterday)
        else:
            with pytest.raises(ValueError, match=f"ended on {yesterday}"):
                _approve(tmp_path, name, policy, _plan())


@pytest.mark.attack(by="policy", names="the policy")
def test_an_approval_is_about_one_policy(tmp_path: Path, policy: Policy) -> None:
    for name in ("alice", "bob"):
        _approve(tmp_path, name, policy, _plan())
    text = (tmp_path / "policy.toml").read_text()
    (tmp_path / "policy.toml").write_text(text.replace("2", "1"))
    with pytest.raises(ValueError, match="under another policy"):
        check_approval(tmp_path / "approval.json", _plan(), read_policy(tmp_path / "policy.toml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("threshold = 0\n[keys]\n", "greater than or equal to 1"),
        ("threshold = 9\n[keys]\nalice = 'alice.pem'\n", "asks for 9 approvals and has 1 keys"),
        ("[keys]\nalice = 'gone.pem'\n", "holds no public key"),
        ("[keys]\nalice = 'alice.key'\n", "holds no public key"),
        ("keys = 3\n", "is no policy"), ("threshold", "is no policy"),
        ("more = 1\n[keys]\n", "Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_policies_that_are_none(text: str, message: str, tmp_path: Path, policy: Policy) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_policy(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    "text", ["{}", "no JSON", '{"payload": "e30=", "payloadType": "x", "signatures": []}']
)
def test_files_that_are_no_approvals(text: str, tmp_path: Path, policy: Policy) -> None:
    (tmp_path / "approval.json").write_text(text)
    with pytest.raises(ValueError, match="is no approval"):
        check_approval(tmp_path / "approval.json", _plan(), policy)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a tokenizer, a recipe with them, a policy of two, and their approval of the run ``run``."""
    place = make_home(tmp_path_factory.mktemp("approved"))
    for name in ("alice", "bob"):
        make_key(place, name)
    (place / "policy.toml").write_text('[keys]\nalice = "alice.pem"\nbob = "bob.pem"\n')
    sign_folder(place / "given", key=place / "alice.key")
    return place


def _under_policy(home: Path, **changes: Any) -> Any:
    run = tiny_run("prior", home)
    ledger = {
        "policy": str(home / "policy.toml"), "approval": str(home / "approval.json"),
        "verify_with": str(home / "alice.pem"), "fingerprint": True,
    }  # fmt: skip
    return run.model_copy(update={"ledger": run.ledger.model_copy(update={**ledger, **changes})})


def _recipe(home: Path) -> Path:
    """The same run as a recipe."""
    given = tiny_run("prior", home).model_dump(mode="json", exclude={"ledger"}, exclude_defaults=True)
    path = home / "recipe.toml"
    path.write_text("[prior]\n" + "\n".join(_toml(given, "prior")))
    return path


def _toml(tree: dict[str, Any], where: str) -> list[str]:
    lines = [f"{name} = {json.dumps(value)}" for name, value in tree.items() if not isinstance(value, dict)]
    for name, value in tree.items():
        if isinstance(value, dict):
            lines += [f"[{where}.{name}]", *_toml(value, f"{where}.{name}")]
    return lines


@pytest.mark.slow
def test_a_run_starts_and_goes_on_with_what_was_approved(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = _recipe(home), tmp_path / "run"
    words = [
        "prior",
        str(recipe),
        "--out",
        str(folder),
        "--device",
        "cpu",
        "--policy",
        str(home / "policy.toml"),
    ]
    words += ["--approval", str(home / "approval.json")]
    assert main(["train", *words, "--quiet"]) == 2
    assert "there is no approval" in capsys.readouterr().err and not (folder / "checkpoints").exists()
    assert main(["approve", *words, "--key", str(home / "alice.key")]) == 0
    assert main(["train", *words, "--quiet"]) == 2
    assert "has 1 of 2 approvals (alice)" in capsys.readouterr().err
    assert main(["approve", *words, "--key", str(home / "bob.key")]) == 0
    assert "approved by alice, bob; 2 are needed" in capsys.readouterr().out
    assert main(["train", *words, "--quiet"]) == 0
    records = list(follow(folder / "ledger.jsonl"))
    (record,) = [item for item in records if item["kind"] == "approved"]
    assert record["names"] == ["alice", "bob"] and record["number"] < 4
    assert main(["verify", str(folder)]) == 0
    assert "approved by alice, bob" in capsys.readouterr().out
    changed = [*words, "--quiet", "--optimizer.weight_decay", "0.04", "--out", str(tmp_path / "more" / "run")]
    assert main(["train", *changed]) == 2
    assert "settings: optimizer.weight_decay is not as approved" in capsys.readouterr().err


@pytest.mark.attack(by="policy", names="the policy")
@pytest.mark.slow
def test_a_run_under_a_policy_stays_under_it(home: Path, tmp_path: Path) -> None:
    from nextscale.train.run import plan_run

    run, folder = _under_policy(home), tmp_path / "stays"
    policy = read_policy(home / "policy.toml")
    place = tmp_path / "approval.json"
    run = run.model_copy(update={"ledger": run.ledger.model_copy(update={"approval": str(place)})})
    plan = plan_run(run, "stays", device="cpu")
    for name in ("alice", "bob"):
        approve(place, plan, read_signer(home / f"{name}.key"), policy, until=TOMORROW)
    train_quietly(run, folder, curves=True)  # nothing may be replaced
    without = run.model_copy(update={"ledger": run.ledger.model_copy(update={"policy": "", "approval": ""})})
    with pytest.raises(ValueError, match="began under a policy"):
        train_quietly(without, folder, curves=True)
    train_quietly(run, folder, curves=True)  # the honest twin: it goes on, to find that all is done
    pictures = sorted((home / "pictures").rglob("*.png"))
    content = pictures[0].read_bytes()
    try:
        pictures[0].write_bytes(pictures[1].read_bytes())
        with pytest.raises(ValueError, match="images"):
            train_run(run, tmp_path / "other" / "stays", device="cpu", say=lambda _: None, progress=False)
    finally:
        pictures[0].write_bytes(content)


@pytest.mark.attack(by="policy", names="the tokenizer")
def test_a_tokenizer_that_is_not_signed_is_refused(home: Path, tmp_path: Path) -> None:
    run = tiny_run("prior", home)
    ledger = run.ledger.model_copy(update={"verify_with": str(home / "bob.pem")})
    with pytest.raises(ValueError, match="Key mismatch"):
        train_quietly(run.model_copy(update={"ledger": ledger}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    ledger = run.ledger.model_copy(update={"verify_with": str(home / "alice.pem")})
    train_quietly(run.model_copy(update={"ledger": ledger}), tmp_path / "run")


@pytest.mark.parametrize(
    ("ledger", "message"),
    [
        ({"policy": "p.toml"}, "belong together"), ({"approval": "a.json"}, "belong together"),
        ({"policy": "p.toml", "approval": "a.json", "fingerprint": False}, r"needs ledger\.enabled"),
        ({"policy": "p.toml", "approval": "a.json", "data": False}, r"needs ledger\.enabled"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(ledger: dict[str, Any], message: str) -> None:
    from nextscale.integrity.settings import LedgerSettings

    make: Callable[..., LedgerSettings] = LedgerSettings
    with pytest.raises(ValueError, match=message):
        make(**ledger)
