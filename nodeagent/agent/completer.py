"""Completes the locks of Slurm's jobs: of typed GRES a prolog is told one type only, so the agent asks for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from nodeagent.agent.journal import Log
from nodeagent.errors import AmbiguousAnswer, NodeAgentError, NoHookConf
from nodeagent.hook.node import Node
from nodeagent.hook.slurm import units_of
from nodeagent.lock.occupancy import Occupancy
from nodeagent.lock.record import CLEANING, Owner
from nodeagent.lock.store import Store
from nodeagent.state import events
from nodeagent.state.files import Directory
from nodeagent.state.hook_conf import TYPED_GRES, read_hook_conf
from nodeagent.state.verdict_file import UnitLine, read_verdict

MOST_QUESTIONS = 8
"""Jobs that are asked about in one cycle: a question takes some 5 ms, and the cycle has other work."""
_LONGEST_PAUSE = 360


class Word(Protocol):
    """What is asked of a scheduler here; see Scheduler."""

    def granted(self, owner: Owner) -> tuple[int, ...] | None:
        """Return the GRES indices that Slurm gave this job on this node."""


class Completer:
    """Looks at grants of Slurm's jobs, once a cycle; asks once a grant, and only where lists may be incomplete."""

    def __init__(self, state: Directory, store: Store, scheduler: Word, log: Log) -> None:
        self._state = state
        self._store = store
        self._scheduler = scheduler
        self._log = log
        self._granted: dict[str, tuple[int, ...]] = {}  # grant → indices by Slurm's word
        self._told: set[tuple[str, str]] = set()  # (grant, what) that has been said
        self._pause = 0
        self._waited = 0

    def run(self) -> None:
        """Ask about new grants and complete those of which a unit is missing. What fails is left to a later cycle."""
        try:
            owners = self._store.owners()
            grants = {owner.grant: owner for owner in owners.values() if owner.scheduler == "slurm"}
            self._granted = {grant: said for grant, said in self._granted.items() if grant in grants}
            self._told = {(grant, what) for grant, what in self._told if grant in grants}
            node = self._node() if grants else None
            if node is not None:
                self._ask(grants.values())
                for grant, indices in self._granted.items():
                    self._complete(node, grants[grant], indices, owners)
        except (NodeAgentError, OSError) as error:
            self._log.warning("complete_failed", why=str(error))

    def _node(self) -> Node | None:
        """Return the node as hooks see it, if Slurm's lists may be incomplete on it."""
        try:
            conf = read_hook_conf(self._state)
        except NoHookConf:
            return None
        if conf.settings.get(TYPED_GRES) != "yes":
            return None
        return Node(self._state, "", conf, read_verdict(self._state), fresh=True)

    def _ask(self, owners: Iterable[Owner]) -> None:
        """Ask about some of the grants that were not asked about; ever more seldom while nobody answers."""
        self._waited += 1
        if self._waited <= self._pause:
            return
        self._waited = 0
        for owner in [owner for owner in owners if owner.grant not in self._granted][:MOST_QUESTIONS]:
            try:
                self._granted[owner.grant] = self._scheduler.granted(owner) or ()
            except AmbiguousAnswer as error:
                self._granted[owner.grant] = ()
                self._log.warning("grant_unclear", job=owner.job, owner=str(owner), why=str(error))
            except NodeAgentError:
                self._pause = min(_LONGEST_PAUSE, 2 * self._pause + 1)
                raise
        self._pause = 0

    def _complete(self, node: Node, owner: Owner, indices: tuple[int, ...], owners: Mapping[str, Owner]) -> None:
        units, unmapped = units_of(node, indices)
        if unmapped:
            self._tell(owner, "unmapped", why=f"no GPU known for GRES index {','.join(map(str, unmapped))}")
        mine = {unit: held for unit, held in owners.items() if held.grant == owner.grant}
        missing = [unit for unit in units if _holder(unit, mine) is None]
        free = _free(node, missing, owners)
        for unit in missing:
            holder = _holder(unit, owners)
            if holder is not None and holder.scheduler != CLEANING:  # what is being cleaned will be free soon
                self._tell(owner, "conflict", units=unit.unit, why=f"granted by Slurm although held by {holder}")
        if free or any(set(held.units) != set(mine) for held in mine.values()):
            self._extend(node, owner, missing)

    def _extend(self, node: Node, owner: Owner, missing: Iterable[UnitLine]) -> None:
        with self._store.exclusive():  # judged again under the flock: the job may have ended, the unit may be taken
            self._store.sweep()
            owners = self._store.owners()
            if any(held.grant == owner.grant and held.scheduler != owner.scheduler for held in owners.values()):
                return  # its epilog was here
            free = _free(node, missing, owners)
            held = self._store.extend(owner.grant, free)
            retired = self._store.retired()
        if free and held:
            self._log.info("lock_completed", job=owner.job, owner=str(owner), units=" ".join(held))
        for unit in missing:
            if any(free.get(name) == unit.gpu for name in held) and (unit.unit in retired or unit.gpu in retired):
                self._tell(owner, "retired_in_use", units=unit.unit, why="granted by Slurm although it is retired")

    def _tell(self, owner: Owner, kind: str, **fields: str) -> None:
        """Record an event as a hook would, once a grant and unit: the next cycle logs and counts it."""
        key = (owner.grant, kind + fields.get("units", ""))
        if key not in self._told:
            self._told.add(key)
            fields.update(scheduler=owner.scheduler, job=owner.job, task=owner.task, user=owner.user, uid=owner.uid)
            events.append(self._state, kind, **fields)


def _free(node: Node, lines: Iterable[UnitLine], owners: Mapping[str, Owner]) -> dict[str, str]:
    """Return what can be locked of those lines, now that these owners hold theirs: unit → GPU."""
    known = node.verdict.units if node.verdict is not None else ()
    occupancy = Occupancy(owners, known)
    taken = {occupancy.take(line)[0]: line.gpu for line in lines}
    return {unit: gpu for unit, gpu in taken.items() if unit}


def _holder(unit: UnitLine, owners: Mapping[str, Owner]) -> Owner | None:
    """Return who holds a unit, a share of it, or the GPU that it is a part of."""
    return next((owners[name] for name in owners if name.partition("@")[0] in (unit.unit, unit.gpu)), None)
