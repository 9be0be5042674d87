"""``nextscale approve``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nextscale.cli.sign import key_password
from nextscale.cli.train import folder_of, settings_of


def run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Sign what a run is about to train."""
    from nextscale.integrity.approval import approve
    from nextscale.integrity.policy import read_policy, read_signer
    from nextscale.train.run import plan_run

    if options.days < 1:
        raise ValueError(f"--days {options.days}: expected 1 or more")
    policy = read_policy(Path(options.policy).expanduser())
    signer = read_signer(Path(options.key).expanduser(), password=key_password())
    settings = settings_of(options, rest)
    plan = plan_run(settings, folder_of(options).resolve().name, device=options.device)
    until = (datetime.now(UTC) + timedelta(days=options.days)).date().isoformat()
    place = Path(options.approval).expanduser()
    names = approve(place, plan, signer, policy, until=until)
    images = ", ".join(f"{item['count']:,} {name}" for name, item in plan.data.items()) or "kept tokens"
    print(f"run {plan.run}: {images} images, {len(plan.code)} lines of code and packages")
    print(f"{place}: approved by {', '.join(names)}; {policy.threshold} are needed")
