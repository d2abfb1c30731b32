"""Taking units for a job: by choice (the lock decides) or on record (the scheduler decided). Lean."""

import time

from nodeagent.errors import UnitsUnavailable
from nodeagent.hook import earlier
from nodeagent.hook.node import Node
from nodeagent.lock.placement import choose
from nodeagent.lock.record import HOLD, MAINTENANCE, Owner
from nodeagent.state.verdict_file import DEGRADED, FAILED, OK, UnitLine, VerdictFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_POLL = 0.1


class UnitsRetired(UnitsUnavailable):
    """Enough units exist, but too few of them are in service: another node may do better."""


class UnitsBusy(UnitsUnavailable):
    """Enough units are in service, but others still hold them."""


def take(node: Node, verdict: VerdictFile, owner: Owner, count: int, wait: float) -> "list[UnitLine]":
    """Choose `count` healthy free units, lock them all for `owner` and return them; waits up to `wait` seconds.

    What the same job still holds on this node is of an earlier run that ended without an epilog: it is freed first,
    unless processes of it are left. But a grant of `owner.grant` itself is kept and returned: the tasks of a parallel
    job on a slave host share one.

    Raises:
        UnitsUnavailable: the node, all of it in order, has fewer units than that.
        UnitsRetired: too few are in service.
        UnitsBusy: too few were free in time, or it is not known how many there ought to be.
        LockBusy, OSError: nothing could be locked; nothing is.

    """
    deadline = time.monotonic() + wait
    # A short list may be the driver's fault and no measure of what a job may ask for.
    complete = node.fresh and verdict.node_state == OK and all(u.state in (OK, DEGRADED) for u in verdict.units)
    # No reason to refuse a job: an older release compiled hook.conf without it.
    spread = node.conf is not None and node.conf.settings.get("placement") == "spread"
    may_go = earlier.over(node, verdict, owner)
    while True:
        with node.store.exclusive():
            node.store.sweep()
            node.store.release(may_go)
            held = _begun(node, owner)
            if owner.units:
                return [unit for unit in verdict.units if unit.unit in owner.units]
            retired = node.store.retired()
            usable = [u for u in verdict.units if u.state in (OK, DEGRADED) and not _named(u, retired)]
            free = [u for u in usable if not _named(u, held)]
            if len(free) >= count:
                chosen = _choose(verdict, free, count, spread)
                owner.units = tuple(unit.unit for unit in chosen)
                node.store.claim(owner)
                return chosen
        numbers = (count, len(verdict.units), len(usable), len(free))
        if count > len(verdict.units):
            raise (UnitsUnavailable if complete else UnitsBusy)(*numbers)
        if count > len(usable):
            raise UnitsRetired(*numbers)
        if time.monotonic() >= deadline:
            raise UnitsBusy(*numbers)
        time.sleep(_POLL)


def _begun(node: Node, owner: Owner) -> "dict[str, Owner]":
    """Return who holds what, and set `owner.units` if its grant is there already; half of one is of a killed hook."""
    held = node.store.owners()
    mine = {unit: other for unit, other in held.items() if other.grant == owner.grant}
    for units in {other.units for other in mine.values()}:
        if mine.keys() >= set(units):
            owner.units = units
            return held
    if mine:
        node.store.release(lambda other: other.grant == owner.grant)
    return {unit: other for unit, other in held.items() if unit not in mine}


def _named(unit: UnitLine, names: "Mapping[str, object]") -> str:
    """Return by which name a unit stands there: its own, or that of the GPU it is an instance of; empty if by none."""
    return unit.unit if unit.unit in names else unit.gpu if unit.gpu in names else ""


def _choose(verdict: VerdictFile, free: "Sequence[UnitLine]", count: int, spread: bool) -> "list[UnitLine]":
    column = {unit.unit: at for at, unit in enumerate(verdict.units)}
    places = [column[unit.unit] for unit in free]
    links = [[unit.links[at] if at < len(unit.links) else 0 for at in places] for unit in free]
    nodes = [unit.numa for unit in free] if spread else None
    return [free[at] for at in choose(count, links, [unit.state != OK for unit in free], nodes)]


class Recorded:
    """What became of a grant that the scheduler made: `locked` units, `conflicts` (unit, holder), `unfit` (unit, why).

    With anything `unfit` nothing is locked.
    """

    __slots__ = ("conflicts", "locked", "unfit")

    def __init__(self) -> None:
        self.locked: tuple[str, ...] = ()
        self.conflicts: list[tuple[str, str]] = []
        self.unfit: list[tuple[str, str]] = []


def record(node: Node, owner: Owner, units: "Iterable[UnitLine]") -> Recorded:
    """Lock what the scheduler granted; where it cannot be locked say why, and let the scheduler's word stand.

    Raises:
        LockBusy, OSError: nothing could be locked; nothing is.

    """
    done = Recorded()
    with node.store.exclusive():
        node.store.sweep()
        node.store.release(lambda held: held.is_job(owner.scheduler, owner.cluster, owner.job, owner.task))
        retired = node.store.retired()
        held = node.store.owners()
        wanted = []
        for unit in units:
            out, holder = _named(unit, retired), _named(unit, held)
            if out:
                done.unfit.append((unit.unit, retired[out].get("reason", "retired")))
            elif unit.state == FAILED and node.fresh:
                done.unfit.append((unit.unit, unit.why or "failed"))
            elif holder and held[holder].scheduler in (HOLD, MAINTENANCE):
                done.unfit.append((unit.unit, f"held by hand: {held[holder]}"))
            elif holder:
                done.conflicts.append((unit.unit, str(held[holder])))
            else:
                wanted.append(unit.unit)
        if not done.unfit and wanted:
            owner.units = done.locked = tuple(wanted)
            node.store.claim(owner)
    return done
