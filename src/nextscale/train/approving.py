"""By whose leave a run starts: what is about to be trained, held against what was approved.

Special here: the settings of the ledger are no part of an approval, since they change nothing that is
trained; neither are processor, threads and number of processes, which a run may change on its way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextscale.integrity.approval import Leave, Plan, check_approval
from nextscale.integrity.policy import read_policy
from nextscale.integrity.settings import LedgerSettings
from nextscale.train.inputs import Inputs


def plan_of(name: str, facts: dict[str, Any], inputs: Inputs) -> Plan:
    """What a run is about to do.

    Args:
        name: of its folder.
        facts: as `nextscale.train.record_start.facts_of` gives them.
        inputs: what it works with.
    """
    taken = inputs.fingerprint
    if taken is None:
        raise ValueError("ledger.fingerprint false leaves out the code, which an approval is about")
    return Plan(name, facts["settings"], facts["inputs"], inputs.sets, taken.lines, taken.wrong)


def check_leave(
    settings: LedgerSettings, folder: Path, facts: dict[str, Any], inputs: Inputs, *, under: str
) -> Leave | None:
    """Whether enough people have approved what is about to be trained.

    Args:
        settings: with policy and approval; without them nobody is asked.
        folder: of the run.
        facts: see `plan_of`.
        inputs: likewise.
        under: digest of the policy that the run began under; empty: under none, or it is new.

    Raises:
        ValueError: they have not, or the run began under another policy.
    """
    if not settings.policy:
        if under:
            raise ValueError(
                f"{folder} began under a policy and goes on under that alone: give --policy and --approval"
            )
        return None
    policy = read_policy(Path(settings.policy).expanduser())
    if under and policy.digest != under:
        raise ValueError(f"{folder} began under another policy than {settings.policy}: give that one")
    plan = plan_of(folder.resolve().name, facts, inputs)
    return check_approval(Path(settings.approval).expanduser(), plan, policy)
