"""Which GPU is to be reset, and whether the node is to be rebooted, where the configuration allows it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from nodeagent.config.model import Policy
from nodeagent.health.finding import RecoveryAction
from nodeagent.health.verdict import Verdict
from nodeagent.policy.decide import BY_AGENT, DrainRecord
from nodeagent.policy.rules import ruling_of_node, ruling_of_unit

DAY = 86400.0
PAUSE = 600.0
"""Seconds between two tries to have the node rebooted: a controller may take its time, and so does a boot."""


def to_reset(
    verdict: Verdict,
    policy: Policy,
    retired: Mapping[str, Mapping[str, str]],
    idle: Collection[str],
    found: Collection[str],
) -> list[str]:
    """Return the GPUs that a reset is asked for, and that are nobody's: retired by the agent, and just for that.

    `idle` are those that nobody has, `found` those on which something is found now: one that only waits to be given
    back needs no second reset.
    """
    return [
        unit.uuid
        for unit in verdict.units
        if unit.uuid in idle
        and unit.uuid in found
        and retired.get(unit.uuid, {}).get("by") == BY_AGENT
        and ruling_of_unit(unit, verdict, policy).action is RecoveryAction.RESET_GPU
    ]


def to_reboot(verdict: Verdict, policy: Policy, record: DrainRecord | None) -> bool:
    """Say whether a reboot is asked for: of a node that the agent itself drained for that, and that still needs it."""
    if record is None or record.by != BY_AGENT or record.action is not RecoveryAction.REBOOT_NODE:
        return False
    rulings = [ruling_of_node(verdict, policy), *(ruling_of_unit(unit, verdict, policy) for unit in verdict.units)]
    return max(ruling.action for ruling in rulings) is RecoveryAction.REBOOT_NODE


def may_reboot(policy: Policy, before: Sequence[float], now: float) -> bool:
    """Say whether it may be rebooted once more; `before` are the times of earlier tries (wall time in seconds)."""
    recent = [at for at in before if 0 <= now - at < DAY]
    return len(recent) < policy.reboot_tries and all(now - at >= PAUSE for at in recent)
