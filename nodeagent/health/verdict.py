"""From findings to a verdict: strikes before it changes, other rules to come back. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from nodeagent.health.finding import Finding, RecoveryAction
from nodeagent.state.verdict_file import OK


@dataclass(frozen=True)
class UnitVerdict:
    """What is thought of one GPU. `state` is OK, DEGRADED, FAILED or UNKNOWN; `since` is monotonic seconds.

    `reasons` are the findings that count (worst first). Identity is kept here too, because a GPU that fell off the bus
    is in no facts any more: `index` and `minor` are then the last ones known.
    """

    uuid: str
    state: str
    since: float
    reasons: tuple[Finding, ...] = ()
    index: int = -1
    minor: int = -1
    bus_id: str = ""
    model: str = ""
    serial: str = ""
    numa_node: int = -1

    @property
    def action(self) -> RecoveryAction:
        """The gravest recovery action that its reasons ask for."""
        return max((reason.action for reason in self.reasons), default=RecoveryAction.NONE)


@dataclass(frozen=True)
class Verdict:
    """One cycle's judgement of the node. `node_findings` concern the node as a whole (unit empty)."""

    boot_id: str
    monotonic: float
    units: tuple[UnitVerdict, ...] = ()
    node_state: str = OK
    node_findings: tuple[Finding, ...] = ()
