"""Taking units for a job: by choice (the lock decides) or on record (the scheduler decided). Lean."""

import time

from nodeagent.errors import UnitsUnavailable
from nodeagent.hook import earlier
from nodeagent.hook.node import Node
from nodeagent.lock.cleaning import in_cleaning, take_over
from nodeagent.lock.model import of_model
from nodeagent.lock.occupancy import Occupancy, named, part, usable
from nodeagent.lock.placement import choose
from nodeagent.lock.record import CLEANING, HOLD, MAINTENANCE, Owner
from nodeagent.state.verdict_file import DEGRADED, FAILED, OK, UnitLine, VerdictFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from nodeagent.hook.ends import Ends, Evidence

_POLL, _POLL_CLEANING = 0.1, 0.02
CLEANING_WAIT = 1.0
"""Seconds that a job waits for units which the agent is cleaning, where it would not wait at all."""


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

    What the same job still holds on this node is of an earlier run that ended without an epilog: it is freed first,
    unless processes of it are left. But a grant of `owner.grant` itself is kept and returned: the tasks of a parallel
    job on a slave host share one. With a `model` (lock/model.py) only units of it are there. A job gets at most one
    share of a GPU: two of them would still be one device.
    Where too few are free, so is what others hold although they are surely over (hook/ends.py).

    Raises:
        UnitsUnavailable: the node, all of it in order, has fewer units than that.
        UnitsRetired: too few are in service.
        UnitsBusy: too few were free in time, or it is not known how many there ought to be.
        LockBusy, OSError: nothing could be locked; nothing is.

    """
    begun = time.monotonic()
    deadline = begun + wait
    # A short list may be the driver's fault and no measure of what a job may ask for.
    complete = node.fresh and verdict.node_state == OK and all(u.state in (OK, DEGRADED) for u in verdict.units)
    # No reason to refuse a job: an older release compiled hook.conf without it.
    spread = node.conf is not None and node.conf.settings.get("placement") == "spread"
    lines = of_model(verdict.units, model)
    may_go = earlier.over(node, verdict, owner)
    ends: Ends | None = None
    over: Mapping[str, str] = {}
    while True:
        with node.store.exclusive():
            node.store.sweep()
            _clear(node, may_go, over)
            held = _begun(node, owner, _held(node))
            if owner.units:
                return lines_of(verdict, owner.units)
            occupied = Occupancy(held, verdict.units)
            retired = node.store.retired()
            well = [u for u in lines if usable(u, retired)]
            free = [u for u in well if occupied.free(u)]
            if len(free) >= count:
                chosen = [part(u, occupied.take(u)[0]) for u in _choose(verdict, free, count, spread, occupied)]
                _claim(node, owner, chosen)
                return chosen
        numbers = (count, len(lines), len(well), len(free), model)
        if count > len(lines):
            raise (UnitsUnavailable if complete else UnitsBusy)(*numbers)
        if count > len(well):
            raise UnitsRetired(*numbers)
        ends = ends or _ends(node, evidence)
        over = ends.look(held)
        if over:
            continue
        if time.monotonic() >= (max(deadline, begun + CLEANING_WAIT) if in_cleaning(held) else deadline):
            raise UnitsBusy(*numbers)
        time.sleep(_POLL)


def _held(node: Node) -> "dict[str, Owner]":
    """Return who holds what, under the flock; what no agent cleans any more is nobody's."""
    held = node.store.owners()
    for unit in take_over(node.store, node.state, node.fresh, held) if in_cleaning(held) else ():
        node.event("cleaning_unfinished", units=unit, why="no agent is there to end it")
        del held[unit]
    return held


def lines_of(verdict: VerdictFile, units: "Iterable[str]") -> "list[UnitLine]":
    """Return the lines of units that are held, in the verdict's order; one that has vanished has none."""
    held = sorted(units)
    return [part(line, unit) for line in verdict.units for unit in held if line.unit in (unit, unit.partition("@")[0])]


def _begun(node: Node, owner: Owner, held: "dict[str, Owner]") -> "dict[str, Owner]":
    """Return who holds what, and set `owner.units` if its grant is there already; half of one is of a killed hook."""
    mine = {unit: other for unit, other in held.items() if other.grant == owner.grant}
    for units in {other.units for other in mine.values()}:
        if mine.keys() >= set(units):
            owner.units = units
            return held
    if mine:
        node.store.release(lambda other: other.grant == owner.grant)
    return {unit: other for unit, other in held.items() if unit not in mine}


def _claim(node: Node, owner: Owner, units: "Sequence[UnitLine]") -> None:
    owner.units = tuple(unit.unit for unit in units)
    owner.gpus = tuple(unit.gpu for unit in units)
    node.store.claim(owner)


def _ends(node: Node, evidence: "Evidence | None") -> "Ends":
    from nodeagent.hook.ends import Ends

    return Ends(node.boot_id, evidence)


def _clear(node: Node, mine: "Callable[[Owner], bool]", over: "Mapping[str, str]") -> None:
    """Free what the job itself still holds (`mine`), and the grants that are over; under the flock.

    A grant's name is random and never used again: one that was over before the flock was had is over now.
    """
    freed = node.store.release(lambda held: mine(held) or held.grant in over)
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
    A lock in the way is freed where it is surely over; `evidence` is asked once, after the scheduler's own word. A unit
    that the agent is cleaning is waited for, CLEANING_WAIT at most, and then taken over.

    Raises:
        LockBusy, OSError: nothing could be locked; nothing is.

    """
    deadline = time.monotonic() + CLEANING_WAIT
    over: Mapping[str, str] | None = None

    def mine(held: Owner) -> bool:
        return held.is_job(owner.scheduler, owner.cluster, owner.job, owner.task)

    while True:
        with node.store.exclusive():
            node.store.sweep()
            _clear(node, mine, over or {})
            held = _held(node)
            cleaning = _in_the_way(node, units, held)
            if cleaning and time.monotonic() >= deadline:
                held = _taken_over(node, owner, held, cleaning)
                cleaning = []
            done, wanted = _compare(node, units, held)
            if not cleaning and (over is not None or not done.conflicts):
                if not done.unfit and wanted:
                    _claim(node, owner, wanted)
                    done.locked = owner.units
                return done
        if cleaning:
            time.sleep(_POLL_CLEANING)
        else:
            over = _ends(node, evidence).look(held, looks=1)


def _lines(node: Node) -> "tuple[UnitLine, ...]":
    return node.verdict.units if node.verdict is not None else ()


def _in_the_way(node: Node, units: "Sequence[UnitLine]", held: "Mapping[str, Owner]") -> "list[str]":
    """Return the units in cleaning without which those granted would be free."""
    cleaning = in_cleaning(held)
    if not cleaning:
        return []
    now = Occupancy(held, _lines(node))
    then = Occupancy({unit: owner for unit, owner in held.items() if unit not in cleaning}, _lines(node))
    gpus = {line.gpu for line in units if not now.take(line)[0] and then.take(line)[0]}
    parents = {line.unit: line.gpu for line in _lines(node)}
    return [unit for unit, owner in cleaning.items() if (parents.get(unit) or owner.gpu_of(unit)) in gpus]


def _taken_over(node: Node, owner: Owner, held: "Mapping[str, Owner]", cleaning: "Sequence[str]") -> "dict[str, Owner]":
    """Free units that the agent has not cleaned in time, under the flock; return what is held then."""
    node.store.release(lambda other: other.scheduler == CLEANING, cleaning)
    why = f"not clean after {CLEANING_WAIT:g} s, and Slurm has granted it"
    node.event("cleaning_unfinished", owner, units=" ".join(cleaning), why=why)
    return {unit: other for unit, other in held.items() if unit not in cleaning}


def _compare(node: Node, units: "Iterable[UnitLine]", held: "Mapping[str, Owner]") -> "tuple[Recorded, list[UnitLine]]":
    """Return what is against locking the units, and those that nothing is against; under the flock."""
    done = Recorded()
    retired = node.store.retired()
    occupied = Occupancy(held, _lines(node))
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
