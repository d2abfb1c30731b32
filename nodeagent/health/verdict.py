"""From facts to findings to a verdict: strikes before it changes, other rules to come back. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nodeagent.config.model import Health
from nodeagent.gpu.facts import NodeFacts
from nodeagent.health.checks import CHECKS, NODE_SERIES, SERIES, site
from nodeagent.health.finding import Finding, RecoveryAction
from nodeagent.health.memory import Memory, clear, from_plain, to_plain
from nodeagent.health.scene import Scene, observe
from nodeagent.health.series import follow
from nodeagent.health.standing import Weighed, weigh
from nodeagent.state.verdict_file import OK

__all__ = ["Memory", "UnitVerdict", "Verdict", "clear", "from_plain", "judge", "to_plain"]


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
    slot: str = ""
    numa_node: int = -1

    @property
    def action(self) -> RecoveryAction:
        """The gravest recovery action that the worst of its reasons ask for.

        What a milder one asks for is told with it and not done: a hot GPU that has to be reset waits for nobody to
        inspect it.
        """
        worst = max(self.reasons, key=lambda reason: (reason.severity, reason.action), default=None)
        return RecoveryAction.NONE if worst is None else worst.action


@dataclass(frozen=True)
class Verdict:
    """One cycle's judgement of the node. `node_findings` concern the node as a whole (unit empty)."""

    boot_id: str
    monotonic: float
    units: tuple[UnitVerdict, ...] = ()
    node_state: str = OK
    node_findings: tuple[Finding, ...] = ()


def judge(memory: Memory, facts: NodeFacts, settings: Health) -> tuple[Verdict, Memory]:
    """Return this cycle's verdict and what the next one has to remember; the same input gives the same output.

    Begin with `Memory()`. A finding counts by its check's rule (rules.py), an XID at once. ERROR fails a
    unit, WARNING degrades it, UNKNOWN makes it UNKNOWN unless an ERROR stands. What counted is taken back after
    `recover` cycles in a row in which the unit was read and nothing as bad was found; until then its reasons stay and
    say what is missing. A unit that could not be read keeps its verdict until the strikes are full; one that never had
    a verdict is UNKNOWN meanwhile. GPUs that were known in this boot stay in the verdict. Another boot forgets
    everything.
    """
    if memory.boot_id and facts.boot_id and memory.boot_id != facts.boot_id:
        memory = Memory()
    scene = follow(observe(memory, facts, settings), memory, settings, SERIES, NODE_SERIES)
    findings = [finding for find in CHECKS.values() for finding in find(scene, settings)]
    now = facts.monotonic
    whole = scene.complete or scene.without_gpus(settings)
    unasked = site.unasked(scene)
    node = weigh(scene.node, _about("", findings), whole, now, settings, unasked)
    units = {
        uuid: weigh(unit, _about(uuid, findings), _judged(scene, uuid), now, settings, unasked)
        for uuid, unit in scene.units.items()
    }
    verdicts = sorted((of_unit(unit) for unit in units.values()), key=place)
    verdict = Verdict(facts.boot_id, now, tuple(verdicts), node.memory.state, node.reasons)
    remembered = {uuid: unit.memory for uuid, unit in units.items()}
    sequence = memory.kernel_sequence if facts.kernel_sequence is None else facts.kernel_sequence
    return verdict, Memory(facts.boot_id or memory.boot_id, node.memory, remembered, sequence)


def _about(unit: str, findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.unit == unit]


def _judged(scene: Scene, uuid: str) -> bool:
    """Whether the GPU gave its values, so that a check which found nothing on it says something."""
    gpu = scene.read.get(uuid)
    return gpu is not None and gpu.error is None


def place(unit: UnitVerdict) -> tuple[bool, int, str, str]:
    """Return what verdicts are ordered by: the index, those without one last."""
    return unit.index < 0, unit.index, unit.bus_id, unit.uuid


def of_unit(weighed: Weighed) -> UnitVerdict:
    """Return the verdict on a unit that has been weighed."""
    unit = weighed.memory
    return UnitVerdict(
        uuid=unit.uuid,
        state=unit.state,
        since=unit.since,
        reasons=weighed.reasons,
        index=unit.index,
        minor=unit.minor,
        bus_id=unit.bus_id,
        model=unit.model,
        serial=unit.serial,
        slot=unit.slot,
        numa_node=unit.numa_node,
    )
