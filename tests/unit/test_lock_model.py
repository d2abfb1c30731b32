"""The locks against a dictionary: any sequence of grants, ends, holds, retirements and crashes, by Hypothesis."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Container
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nodeagent.errors import UnitHeld, UnitsUnavailable
from nodeagent.hook import epilog
from nodeagent.hook.node import Node
from nodeagent.hook.prolog import UnitsBusy, UnitsRetired, record, take
from nodeagent.lock.reconcile import gone
from nodeagent.lock.record import HOLD, UNREADABLE, Owner
from nodeagent.lock.store import Store
from nodeagent.state.boot import boot_id
from nodeagent.state.files import Directory
from nodeagent.state.verdict_file import DEGRADED, FAILED, OK, UnitLine, VerdictFile
from tests.support import uuid

WHOLE = [uuid(i) for i in range(4)]
CUT = uuid(4)
GPU_OF = {**{unit: unit for unit in WHOLE}, "MIG-a": CUT, "MIG-b": CUT}
UNITS = list(GPU_OF)
NAMES = [*UNITS, CUT]
DEAD = "dead"

Identity = tuple[str, str, str, str]  # scheduler, cluster, job, task
# Each differs from another in one field only.
IDENTITIES: list[Identity] = [
    ("sge", "", "1", ""),
    ("sge", "", "1", "1"),
    ("sge", "", "1", "2"),
    ("slurm", "a", "1", ""),
    ("slurm", "b", "1", ""),
    ("slurm", "a", "2", ""),
    ("local", "", "1", ""),
]
identities = st.sampled_from(IDENTITIES)
names = st.sampled_from(NAMES)


class Locks(RuleBasedStateMachine):
    """What the store must say after each step: `holder`, whose grant holds a unit; `named`, what that owner names."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="lock-model-"))
        self.state = Directory(str(self.directory / "state"), create=True)
        self.locks = self.directory / "state" / "locks"
        self.store = Store(self.state)
        self.holder: dict[str, str] = {}
        self.named: dict[str, set[str]] = {}
        self.retired: set[str] = set()
        self.unreadable: set[str] = set()
        self.debris: set[str] = set()
        self.owner_of: dict[str, Owner] = {}
        self.grant_of: dict[Identity, str] = {}
        self.holds: list[str] = []

    def teardown(self) -> None:
        self.state.close()
        shutil.rmtree(self.directory)

    @initialize(states=st.lists(st.sampled_from([OK, OK, OK, DEGRADED, FAILED]), min_size=6, max_size=6))
    def node_is_judged(self, states: list[str]) -> None:
        self.verdict = VerdictFile(
            boot_id("/proc"),
            0.0,
            tuple(
                UnitLine(unit, at, at, "0000:00:00.0", "H100", 0, (1,) * len(UNITS), states[at], "", gpu)
                for at, (unit, gpu) in enumerate(GPU_OF.items())
            ),
        )
        self.node = Node(self.state, boot_id("/proc"), None, self.verdict, fresh=True)

    # -- the model ----------------------------------------------------------------------------------------------------

    def _named(self, unit: str, among: Container[str]) -> bool:
        return any(name in among for name in (unit, GPU_OF[unit]))

    def _forget(self, grant: str) -> set[str]:
        freed = {unit for unit, by in self.holder.items() if by == grant}
        for unit in freed:
            del self.holder[unit]
        self.grant_of = {job: by for job, by in self.grant_of.items() if by != grant}
        self.holds = [by for by in self.holds if by != grant]
        return freed

    def _end(self, identity: Identity) -> set[str]:
        self.debris.clear()  # every writer sweeps first
        return self._forget(self.grant_of.get(identity, ""))

    def _took(self, owner: Owner) -> None:
        for unit in owner.units:
            assert unit not in self.holder, f"{unit} is granted twice"
            self.holder[unit] = owner.grant
            self.named[unit] = set(owner.units)
        self.owner_of[owner.grant] = owner

    def _complete(self, grant: str) -> bool:
        """Say whether all is there that the grant's owners name; what cannot be read counts as there."""
        names = set().union(*(self.named[unit] for unit, by in self.holder.items() if by == grant))
        return all(self.holder.get(unit) == grant or unit in self.unreadable for unit in names)

    def _owner(self, identity: Identity) -> Owner:
        scheduler, cluster, job, task = identity
        return self.node.owner(scheduler, job, cluster=cluster, task=task)

    def _outlived(self) -> set[str]:
        """Return the grants that the locks themselves show to be over: half a grant or an `exec`, its process gone."""
        over = set()
        for grant in set(self.grant_of.values()):
            owner = self.owner_of[grant]
            if owner.pid == DEAD and (owner.scheduler == "local" or not self._complete(grant)):
                over.add(grant)
        return over

    # -- hooks --------------------------------------------------------------------------------------------------------

    @rule(identity=identities, count=st.integers(1, 4))
    def a_prolog_chooses(self, identity: Identity, count: int) -> None:
        self._end(identity)
        usable = {u.unit for u in self.verdict.units if u.state != FAILED and not self._named(u.unit, self.retired)}
        free = {unit for unit in usable if not self._named(unit, self.holder)}
        if len(free) < count <= len(usable):  # only then are the locks of others judged
            for grant in self._outlived():
                self._forget(grant)
            free = {unit for unit in usable if not self._named(unit, self.holder)}
        owner = self._owner(identity)
        if len(free) >= count:
            chosen = {unit.unit for unit in take(self.node, self.verdict, owner, count, wait=0.0)}
            assert chosen == set(owner.units) and len(chosen) == count and chosen <= free
            healthy = {u.unit for u in self.verdict.units if u.state == OK} & free
            assert chosen <= healthy or healthy <= chosen, "a degraded unit before a healthy one"
            self._took(owner)
            self.grant_of[identity] = owner.grant
        else:
            with pytest.raises(UnitsBusy if count <= len(usable) else UnitsRetired) as told:
                take(self.node, self.verdict, owner, count, wait=0.0)
            assert isinstance(told.value, UnitsUnavailable)
            assert (told.value.healthy, told.value.free) == (len(usable), len(free))

    @rule(identity=identities, units=st.sets(st.sampled_from(UNITS), min_size=1, max_size=3))
    def a_prolog_records(self, identity: Identity, units: set[str]) -> None:
        self._end(identity)
        lines = [unit for unit in self.verdict.units if unit.unit in units]
        owner = self._owner(identity)
        by_hand = {unit for unit, grant in self.holder.items() if grant in self.holds}
        unfit = {u.unit for u in lines if u.state == FAILED or self._named(u.unit, self.retired)}
        unfit |= {u for u in units - unfit if self._by_hand(u, by_hand)}
        free = {unit for unit in units if not self._named(unit, self.holder)} - unfit
        if free != units - unfit:  # something is in the way
            for grant in self._outlived():
                self._forget(grant)
            free = {unit for unit in units if not self._named(unit, self.holder)} - unfit

        done = record(self.node, owner, lines)

        assert {unit for unit, _ in done.unfit} == unfit
        assert {unit for unit, _ in done.conflicts} == units - unfit - free
        assert set(done.locked) == (set() if unfit else free)
        if done.locked:
            assert done.locked == owner.units
            self._took(owner)
            self.grant_of[identity] = owner.grant

    def _by_hand(self, unit: str, by_hand: set[str]) -> bool:
        name = unit if unit in self.holder else GPU_OF[unit]
        return name in by_hand and name not in self.unreadable

    @rule(identity=identities)
    def an_epilog_releases(self, identity: Identity) -> None:
        mine = self._end(identity)
        assert set(epilog.release(self.state, *identity)) == mine

    # -- agent and administrator --------------------------------------------------------------------------------------

    @rule(units=st.lists(names, min_size=1, max_size=3, unique=True))
    def an_administrator_holds(self, units: list[str]) -> None:
        owner = self.node.owner(HOLD, "hold")
        owner.units, owner.boot_id = tuple(units), "an earlier boot"  # whatever its process or boot, it stays
        self.debris.clear()
        with self.store.exclusive():
            self.store.sweep()
            if set(units) & self.holder.keys():
                with pytest.raises(UnitHeld):
                    self.store.claim(owner)
                return
            self.store.claim(owner)
        self._took(owner)
        self.holds.append(owner.grant)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def an_administrator_lets_go(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(self.holds))
        with self.store.exclusive():
            freed = self.store.release(lambda owner: owner.grant == grant)
        assert set(freed) == self._forget(grant)

    @rule(unit=names)
    def a_unit_is_retired(self, unit: str) -> None:
        with self.store.exclusive():
            self.store.retire(unit, [("reason", "broken")])
        self.retired.add(unit)

    @rule(unit=names)
    def a_unit_is_restored(self, unit: str) -> None:
        with self.store.exclusive():
            assert self.store.restore(unit) == (unit in self.retired)
        self.retired.discard(unit)

    @rule(ended=st.sets(identities, max_size=2))
    def the_agent_reconciles(self, ended: set[Identity]) -> None:
        """What is told to be over goes, and what lost a unit and its hook; a hold and what cannot be read stay."""
        told = {self.grant_of[identity]: "over" for identity in ended if identity in self.grant_of}
        over = set(told) | self._outlived()
        self.debris.clear()
        with self.store.exclusive():
            self.store.sweep()
            judged = gone(self.store.owners(), self.node.boot_id, _start_of(self.owner_of), told)
            freed = self.store.release(lambda owner: owner.grant in judged)
        assert set(freed) == set().union(*map(self._forget, over))

    @precondition(lambda self: self.grant_of)
    @rule(data=st.data(), units=st.lists(st.sampled_from(UNITS), max_size=2, unique=True))
    def the_agent_completes(self, data: st.DataObject, units: list[str]) -> None:
        """A grant gets the units that are still free, unless a crash left only a part of it."""
        grant = self.grant_of[data.draw(st.sampled_from(sorted(self.grant_of)))]
        mine = {unit for unit, by in self.holder.items() if by == grant}
        free = [unit for unit in units if unit not in self.holder]
        whole = all(self.holder.get(name) == grant for unit in mine for name in self.named[unit])
        self.debris.clear()
        with self.store.exclusive():
            self.store.sweep()
            held = self.store.extend(grant, {unit: unit for unit in (*free, *mine)})
        assert set(held) == (mine | set(free) if whole else set())
        for unit in held:
            self.holder[unit] = grant
            self.named[unit] = set(held)

    @rule(unit=st.sampled_from(UNITS))
    def a_grant_that_is_gone_is_not_completed(self, unit: str) -> None:
        with self.store.exclusive():
            assert self.store.extend("feedfeedfeedfeed", {unit: unit}) == ()

    @rule()
    def somebody_sweeps(self) -> None:
        with self.store.exclusive():
            swept = self.store.sweep()
        assert set(swept) == self.debris
        self.debris.clear()

    # -- crashes ------------------------------------------------------------------------------------------------------

    @rule(identity=identities, units=st.lists(st.sampled_from(UNITS), min_size=1, max_size=3, unique=True), cut=names)
    def a_prolog_dies_in_the_middle(self, identity: Identity, units: list[str], cut: str) -> None:
        """Its grant has the units before `cut`; the next one is prepared."""
        if identity in self.grant_of or set(units) & (self.holder.keys() | self.debris) or not self._fit(units):
            return
        at = units.index(cut) if cut in units else len(units)
        owner = self._owner(identity)
        owner.pid, owner.units = DEAD, tuple(units)
        for unit in units[:at]:
            _write(self.locks / unit, owner.encode())
            self.holder[unit] = owner.grant
            self.named[unit] = set(units)
        if at < len(units):
            self._leave(f".new-{owner.grant}-{units[at]}", owner.encode())
        self.owner_of[owner.grant] = owner
        if at:
            self.grant_of[identity] = owner.grant

    def _fit(self, units: list[str]) -> bool:
        return not any(self._named(unit, self.retired) or self._named(unit, self.holder) for unit in units)

    @precondition(lambda self: set(self.grant_of.values()) & set(self.holder.values()))
    @rule(data=st.data())
    def an_epilog_dies_in_the_middle(self, data: st.DataObject) -> None:
        """It had renamed one unit away."""
        jobs = sorted(unit for unit, grant in self.holder.items() if grant in self.grant_of.values())
        unit = data.draw(st.sampled_from(jobs))
        discarded = f".old-{len(self.debris)}-{unit}"
        (self.locks / unit).rename(self.locks / discarded)
        self.debris.add(discarded)
        grant = self.holder.pop(unit)
        if grant not in self.holder.values():
            self._forget(grant)

    @precondition(lambda self: self.grant_of)
    @rule(data=st.data(), units=st.lists(st.sampled_from(UNITS), min_size=1, max_size=2, unique=True))
    def the_agent_dies_while_it_completes(self, data: st.DataObject, units: list[str]) -> None:
        """The new units name those before them and themselves; the older owners are as they were."""
        grant = self.grant_of[data.draw(st.sampled_from(sorted(self.grant_of)))]
        mine = [unit for unit, by in self.holder.items() if by == grant]
        if not self._complete(grant) or set(units) & (self.holder.keys() | self.debris):
            return
        for unit in units:
            mine.append(unit)
            _write(self.locks / unit, self.owner_of[grant].with_units(dict(zip(mine, mine))).encode())
            self.holder[unit], self.named[unit] = grant, set(mine)
        (self.locks / mine[0] / ".owner.1").write_text("format=1\nsched")

    @rule(unit=st.sampled_from(UNITS), text=st.sampled_from([None, "format=1\nsched"]))
    def something_half_made_lies_about(self, unit: str, text: str | None) -> None:
        self._leave(f".new-feed-{unit}", text)

    @rule(unit=st.sampled_from(UNITS))
    def a_lock_lost_its_owner(self, unit: str) -> None:
        if unit not in self.holder:
            self._leave(unit, None)

    @rule(unit=st.sampled_from(UNITS), text=st.sampled_from(["", "format=2\nscheduler=sge\n", "format=1\nscheduler="]))
    def an_owner_cannot_be_read(self, unit: str, text: str) -> None:
        """Another release wrote it, or the disk did: held until an administrator releases it, never free."""
        if unit not in self.holder and unit not in self.debris:
            _write(self.locks / unit, text)
            self.holder[unit] = unit
            self.named[unit] = {unit}
            self.unreadable.add(unit)

    @precondition(lambda self: self.unreadable)
    @rule(data=st.data())
    def an_administrator_releases_what_cannot_be_read(self, data: st.DataObject) -> None:
        unit = data.draw(st.sampled_from(sorted(self.unreadable)))
        with self.store.exclusive():
            assert set(self.store.release(lambda owner: owner.grant == unit)) == {unit}
        self.unreadable.discard(unit)
        del self.holder[unit]

    def _leave(self, name: str, text: str | None) -> None:
        _write(self.locks / name, text)
        self.debris.add(name)

    # -- what holds after each step -----------------------------------------------------------------------------------

    @invariant()
    def the_store_says_what_the_model_says(self) -> None:
        owners = self.store.owners()
        assert {unit: owner.grant for unit, owner in owners.items()} == self.holder
        assert {unit for unit, owner in owners.items() if owner.scheduler == UNREADABLE} == self.unreadable
        for unit, owner in owners.items():
            known = self.owner_of.get(owner.grant)
            assert unit in owner.units and set(owner.units) == self.named[unit]
            if known is not None:
                said = known.with_units(dict.fromkeys(owner.units, ""))
                said.gpus = owner.gpus  # what was given by hand names none
                assert owner.encode() == said.encode()

    @invariant()
    def retired_is_what_was_retired(self) -> None:
        assert set(self.store.retired()) == self.retired

    @invariant()
    def nothing_else_lies_about(self) -> None:
        there = set(os.listdir(self.locks)) if self.locks.exists() else set()
        assert there == self.holder.keys() | self.debris


def _start_of(owners: dict[str, Owner]) -> Callable[[str], str]:
    starts = {owner.pid: owner.pid_start for owner in owners.values() if owner.pid != DEAD}
    return lambda pid: starts.get(pid, "")


def _write(lock: Path, text: str | None) -> None:
    lock.mkdir(parents=True, exist_ok=True, mode=0o755)
    if text is not None:
        (lock / "owner").write_text(text)
        (lock / "owner").chmod(0o644)


TestLocks = Locks.TestCase
TestLocks.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
