"""Taking units for a job: by choice (the lock decides) or on record (the scheduler decided). Lean."""

import time

from nodeagent.errors import UnitsUnavailable
from nodeagent.hook.node import Node
from nodeagent.lock.model import of_model
from nodeagent.lock.occupancy import Occupancy, named, part
from nodeagent.lock.placement import choose
from nodeagent.lock.record import HOLD, MAINTENANCE, Owner
from nodeagent.state.verdict_file import DEGRADED, FAILED, OK, UnitLine, VerdictFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nodeagent.hook.ends import Ends, Evidence

_POLL = 0.1


class UnitsRetired(UnitsUnavailable):
    """Enough units exist, but too few of them are in service: another node may do better."""


class UnitsBusy(UnitsUnavailable):
    """Enough units are in service, but others still hold them."""


def take(
    node: Node,
    verdict: VerdictFile,
    owner: Owner,
    count: int,
    wait: float,
    model: str = "",
    evidence: "Evidence | None" = None,
) -> "list[UnitLine]":
    """Choose `count` healthy free units, lock them all for `owner` and return them; waits up to `wait` seconds.

    What the same job still holds on this node is of an earlier run that ended without an epilog: it is freed first.
    With a `model` (lock/model.py) only units of it are there. A job gets at most one share of a GPU: two of them would
    still be one device.
    Where too few are free, so is what others hold although they are surely over (hook/ends.py).

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
    lines = of_model(verdict.units, model)
    ends: Ends | None = None
    over: Mapping[str, str] = {}
    while True:
        with node.store.exclusive():
            node.store.sweep()
            _clear(node, owner, over)
            held = node.store.owners()
            occupied = Occupancy(held, verdict.units)
            retired = node.store.retired()
            usable = [u for u in lines if u.state in (OK, DEGRADED) and not named(u, retired)]
            free = [u for u in usable if occupied.free(u)]
            if len(free) >= count:
                chosen = [part(u, occupied.take(u)[0]) for u in _choose(verdict, free, count, spread, occupied)]
                _claim(node, owner, chosen)
                return chosen
        numbers = (count, len(lines), len(usable), len(free), model)
        if count > len(lines):
            raise (UnitsUnavailable if complete else UnitsBusy)(*numbers)
        if count > len(usable):
            raise UnitsRetired(*numbers)
        ends = ends or _ends(node, evidence)
        over = ends.look(held)
        if over:
            continue
        if time.monotonic() >= deadline:
            raise UnitsBusy(*numbers)
        time.sleep(_POLL)


def _claim(node: Node, owner: Owner, units: "Sequence[UnitLine]") -> None:
    owner.units = tuple(unit.unit for unit in units)
    owner.gpus = tuple(unit.gpu for unit in units)
    node.store.claim(owner)


def _ends(node: Node, evidence: "Evidence | None") -> "Ends":
    from nodeagent.hook.ends import Ends

    return Ends(node.boot_id, evidence)


def _clear(node: Node, owner: Owner, over: "Mapping[str, str]") -> None:
    """Free what the job itself still holds, and the grants that are over; under the flock.

    A grant's name is random and never used again: one that was over before the flock was had is over now.
    """
    freed = node.store.release(
        lambda held: held.is_job(owner.scheduler, owner.cluster, owner.job, owner.task) or held.grant in over
    )
    for grant in {held.grant for held in freed.values()} & over.keys():
        units = [unit for unit, held in freed.items() if held.grant == grant]
        node.event("lock_reconciled", freed[units[0]], units=" ".join(units), why=over[grant])


_PARTS = 1000


def _choose(
    verdict: VerdictFile, free: "Sequence[UnitLine]", count: int, spread: bool, occupied: Occupancy
) -> "list[UnitLine]":
    """Return the best set: of healthy units first, then the fullest shared GPUs (spread: the emptiest), then linked.

    A unit whose device files nobody knows comes last of the healthy ones.
    """
    column = {unit.unit: at for at, unit in enumerate(verdict.units)}
    places = [column[unit.unit] for unit in free]
    links = [[unit.links[at] if at < len(unit.links) else 0 for at in places] for unit in free]
    nodes = [unit.numa for unit in free] if spread else None
    rest = [_PARTS * occupied.free(unit) // max(1, unit.slots) for unit in free]
    use = [_PARTS - part_free if spread else part_free for part_free in rest]
    unknown = _PARTS * count + 1
    degraded = unknown * (count + 1)
    worse = [degraded * (unit.state != OK) + unknown * _has_no_file(unit) for unit in free]
    preference = [much + used for much, used in zip(worse, use)]
    return [free[at] for at in choose(count, links, preference, nodes)]


def _has_no_file(unit: UnitLine) -> bool:
    """Say whether it is not known by which device files the unit is opened: a job on it may not be isolated."""
    return unit.minor < 0 or (unit.unit != unit.gpu and not unit.caps)


class Recorded:
    """What became of a grant that the scheduler made: `locked` units, `conflicts` (unit, holder), `unfit` (unit, why).

    With anything `unfit` nothing is locked.
    """

    __slots__ = ("conflicts", "locked", "unfit")

    def __init__(self) -> None:
        self.locked: tuple[str, ...] = ()
        self.conflicts: list[tuple[str, str]] = []
        self.unfit: list[tuple[str, str]] = []


def record(node: Node, owner: Owner, units: "Sequence[UnitLine]", evidence: "Evidence | None" = None) -> Recorded:
    """Lock what the scheduler granted; where it cannot be locked say why, and let the scheduler's word stand.

    Of a shared GPU the first free share is locked: the scheduler does not say which.
    A lock in the way is freed where it is surely over; `evidence` is asked once, after the scheduler's own word.

    Raises:
        LockBusy, OSError: nothing could be locked; nothing is.

    """
    over: Mapping[str, str] | None = None
    while True:
        with node.store.exclusive():
            node.store.sweep()
            _clear(node, owner, over or {})
            held = node.store.owners()
            done, wanted = _compare(node, units, held)
            if over is not None or not done.conflicts:
                if not done.unfit and wanted:
                    _claim(node, owner, wanted)
                    done.locked = owner.units
                return done
        over = _ends(node, evidence).look(held, looks=1)


def _compare(node: Node, units: "Iterable[UnitLine]", held: "Mapping[str, Owner]") -> "tuple[Recorded, list[UnitLine]]":
    """Return what is against locking the units, and those that nothing is against; under the flock."""
    done = Recorded()
    retired = node.store.retired()
    occupied = Occupancy(held, node.verdict.units if node.verdict is not None else ())
    wanted = []
    for unit in units:
        out = named(unit, retired)
        name, holder = occupied.take(unit)
        if out:
            done.unfit.append((unit.unit, retired[out].get("reason", "retired")))
        elif unit.state == FAILED and node.fresh:
            done.unfit.append((unit.unit, unit.why or "failed"))
        elif holder and held[holder].scheduler in (HOLD, MAINTENANCE):
            done.unfit.append((unit.unit, f"held by hand: {held[holder]}"))
        elif holder:
            done.conflicts.append((unit.unit, str(held[holder])))
        else:
            wanted.append(part(unit, name))
    return done, wanted
