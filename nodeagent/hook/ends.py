"""Which other jobs are surely over, as a prolog that finds too few units sees it. Lean.

Imported only then. It asks no scheduler and no file server but the one on which the prolog itself was started.
"""

import os
import time

from nodeagent.hook.node import Node
from nodeagent.lock.evidence import in_use, is_run, steps
from nodeagent.lock.reconcile import gone
from nodeagent.state.boot import start_time
from nodeagent.state.processes import device_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nodeagent.lock.record import Owner

    Evidence = Callable[[Mapping[str, Owner]], Mapping[str, str]]

LOOKS_APART = 1.0
"""Seconds between two looks at the same evidence: what is in the middle of something is not so at both."""


class Ends:
    """Judges again and again, as long as a prolog waits."""

    __slots__ = ("_boot_id", "_evidence", "_next", "_suspects")

    def __init__(self, boot_id: str, evidence: "Evidence | None") -> None:
        self._boot_id = boot_id
        self._evidence = evidence
        self._suspects: Mapping[str, str] = {}
        self._next = 0.0

    def look(self, owners: "Mapping[str, Owner]", looks: int = 2) -> "dict[str, str]":
        """Return grant -> why, of those that are surely over: by the locks themselves, or by evidence at two looks.

        One look is enough (`looks`) where the scheduler itself has said the same before.
        """
        confirmed: Mapping[str, str] = {}
        if self._evidence is not None and time.monotonic() >= self._next:
            found = self._evidence(owners)
            confirmed = {grant: why for grant, why in found.items() if looks == 1 or grant in self._suspects}
            self._suspects = found
            self._next = time.monotonic() + LOOKS_APART
        return gone(owners, self._boot_id, start_time, confirmed)


def grid_engine(node: Node, run: str, owners: "Mapping[str, Owner]") -> "dict[str, str]":
    """Return grant -> why, of the runs that the exec daemon has removed from where this prolog's own `run` is.

    A listing without the prolog's own run is none to believe. A shepherd that is left, and a process that has a GPU of
    the grant open, are a job that is not over; a GPU whose device file is not known is not judged.
    """
    parent, _, mine = run.rpartition("/")
    try:
        there = os.listdir(parent)
    except OSError:
        return {}
    if mine not in there or node.conf is None:
        return {}
    proc = node.conf.text("roots.proc")
    here = {owner.grant: owner for owner in owners.values() if owner.run.rpartition("/")[0] == parent}
    return {
        owner.grant: f"the exec daemon has removed {owner.run}"
        for owner in here.values()
        if owner.scheduler == "sge"
        and owner.run.rpartition("/")[2] not in there
        and not is_run(proc, owner)
        and _unused(node, proc, owner)
    }


def slurm(node: Node, cluster: str, owners: "Mapping[str, Owner]") -> "dict[str, str]":
    """Return grant -> why, of jobs with neither a step nor an open GPU here; asked only of what Slurm has given away.

    Alone that is no evidence, as a job can be without steps; hook.conf names a spool directory only where Slurm never
    gives the same GPU to two jobs (docs/decisions).
    """
    spool = node.conf.settings.get("scheduler.slurm.spool", "") if node.conf is not None else ""
    if not spool or node.conf is None or not cluster:
        return {}
    try:
        running = steps(os.listdir(spool))
    except OSError:
        return {}
    proc = node.conf.text("roots.proc")
    return {
        owner.grant: "Slurm has given its GPU to another job, and it has no step here"
        for owner in owners.values()
        if (owner.scheduler, owner.cluster) == ("slurm", cluster)
        and owner.job not in running
        and _unused(node, proc, owner)
    }


def _unused(node: Node, proc: str, owner: "Owner") -> bool:
    """Say whether nothing that can be of the grant has its GPUs open; False where that cannot be told."""
    assert node.conf is not None  # noqa: S101  the callers have looked
    minors = {line.unit: line.minor for line in (node.verdict.units if node.verdict is not None else ())}
    dev = node.conf.text("roots.dev")
    devices = {device_number(f"{dev}/nvidia{minors.get(unit.partition('@')[0], -1)}") for unit in owner.units}
    try:
        return -1 not in devices and not in_use(proc, devices, owner)
    except (OSError, ValueError):
        return False
