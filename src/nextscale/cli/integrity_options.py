"""Options of the commands that look for changes, sign and approve."""

from __future__ import annotations

import argparse


def add_verify_options(verify: argparse.ArgumentParser) -> None:
    """Add those of ``nextscale verify``."""
    verify.add_argument("folder", help="of a run, or of a model that is signed")
    verify.add_argument("--anchor", help="file elsewhere that took the heads of its ledger (ledger.anchor)")
    add_verify_with(verify)
    verify.epilog = (
        "The exit code is 0 when everything is as it was recorded or signed, 1 when something is not, 2 for "
        "a folder that is neither a run with a ledger nor a model. Changes nothing."
    )


def add_verify_with(command: argparse.ArgumentParser) -> None:
    """Add the option of commands that read a model."""
    command.add_argument(
        "--verify-with", default="", metavar="WHO",
        help="refuse a model that is not signed by: a file with a public key or certificates (PEM), or "
        "keyless:IDENTITY,ISSUER",
    )  # fmt: skip


def add_sign_options(sign: argparse.ArgumentParser) -> None:
    """Add those of ``nextscale sign``."""
    sign.add_argument("model", help="model folder; model.sig goes into it")
    sign.add_argument("--key", help="private key (PEM, elliptic curve P-256, P-384 or P-521)")
    sign.add_argument("--certificate", help="of the key (PEM)")
    sign.add_argument("--chain", nargs="+", default=[], help="certificates from it to its authority (PEM)")
    sign.add_argument("--keyless", action="store_true", help="by an account of an OpenID provider (Sigstore)")
    sign.add_argument("--identity-token", help="with --keyless: file with a token, instead of a browser")
    sign.epilog = (
        "The password of a key is read from the environment, NEXTSCALE_KEY_PASSWORD. The signature has the "
        "format of OpenSSF model signing: model_signing verify key checks it too."
    )


def add_replay_options(replay: argparse.ArgumentParser) -> None:
    """Add those of ``nextscale replay``."""
    replay.add_argument("folder", help="of a run")
    replay.add_argument(
        "--from", dest="first", type=int, required=True,
        help="step to begin after: the newest checkpoint that is there up to it; 0: the run's beginning",
    )  # fmt: skip
    replay.add_argument("--to", dest="last", type=int, required=True, help="the last step")
    replay.add_argument(
        "--tolerance", type=float, default=0.0,
        help="how much losses and gradient norms may differ, relatively, for another machine (default: 0)",
    )  # fmt: skip
    replay.add_argument("--device", help="cpu, cuda, ... (default: a GPU when there is one)")
    replay.add_argument("--quiet", action="store_true", help="no progress bar")
    replay.epilog = (
        "The exit code is 0 when everything comes out as recorded, 1 when something does not, 2 for what "
        "cannot be replayed. Changes nothing. A run of several processes is replayed by as many (torchrun)."
    )


def add_explain_options(explain: argparse.ArgumentParser) -> None:
    """Add those of ``nextscale explain``."""
    explain.add_argument("thing", metavar="MODEL|PNG", help="a model, or a picture that nextscale wrote")
    explain.add_argument("--model", help="of a picture: the model that made it")
    explain.add_argument(
        "--run", dest="run_folder", metavar="RUN",
        help="folder of the run that made the model (default: the folder around it, where that is one)",
    )  # fmt: skip
    add_verify_with(explain)
    explain.epilog = (
        "The exit code is 0 when everything that is here fits together, 1 where the chain breaks, 2 for "
        "what is neither a model nor a picture with a record."
    )


def add_approve_options(approve: argparse.ArgumentParser) -> None:
    """Add those of ``nextscale approve``."""
    approve.add_argument(
        "stage", choices=["tokenizer", "prior", "decoder", "classifier"], help="what will be trained"
    )
    approve.add_argument("recipe", help="name of a recipe, or a .toml file")
    approve.add_argument("--out", help="folder that the run will have (default: runs/RECIPE-STAGE)")
    approve.add_argument("--device", help="where it will train (default: a GPU when there is one)")
    approve.add_argument("--policy", required=True, help="TOML file with threshold and [keys]")
    approve.add_argument("--key", required=True, help="your private key (PEM)")
    approve.add_argument(
        "--approval", default="approval.json",
        help="file to write; one that is there gets your signature besides (default: approval.json)",
    )  # fmt: skip
    approve.add_argument("--days", type=int, default=30, help="how long it holds (default: 30)")
    approve.epilog = (
        "Give the settings as for train, as --a.b.c VALUE. The password of a key is read from the "
        "environment, NEXTSCALE_KEY_PASSWORD."
    )
