"""One process of the race: random operations of hooks, agent and administrator, until its quota is done or it dies."""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

from nodeagent.agent.reconciler import Reconciler
from nodeagent.errors import LockBusy, NodeAgentError, UnitHeld, UnitsUnavailable
from nodeagent.gpu.facts import NodeFacts
from nodeagent.hook import epilog, prolog
from nodeagent.hook.node import Node
from nodeagent.lock.record import HOLD, UNREADABLE, Owner
from nodeagent.lock.store import Store
from nodeagent.scheduler.local import LocalScheduler
from nodeagent.state import events
from nodeagent.state.boot import boot_id, start_time
from nodeagent.state.files import Directory
from nodeagent.state.verdict_file import UnitLine, VerdictFile
from tests.contract.race_witness import BEGIN, KILLED, RELEASING, WRONG, Log, WitnessedStore

DOOM = 1 / 200
"""How often a process that holds something kills itself in the next operation, before the nth change of a file."""
LAST_CHANGE = 14
RERUN = 0.1
"""How often a process that has a job runs it again without an epilog, instead of ending it."""
REST = 0.03
"""The longest pause, in seconds, after a prolog that got nothing: those who hold something get their turn."""
CHANGES = frozenset(("os.rename", "os.mkdir", "os.chmod", "os.remove", "os.rmdir"))
COUNTER = struct.Struct("q")

Identity = tuple[str, str, str, str]  # scheduler, cluster, job, task


class Doom:
    """SIGKILL in mid-operation: before the nth system call that changes a file, by Python's audit events."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._left = 0
        sys.addaudithook(self._audit)

    def arm(self, changes: int) -> None:
        """Die before the change of that number; 0 disarms."""
        self._left = changes

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._left:
            return
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT):
            self._left -= 1
            if not self._left:
                self._log.say(KILLED, os.getpid())
                os.kill(os.getpid(), signal.SIGKILL)


class EndedWithTheirProcess(LocalScheduler):
    """A scheduler whose jobs live as long as the process that took their units."""

    def ended_here(self, owners: Iterable[Owner]) -> dict[str, str]:
        jobs = (owner for owner in owners if owner.scheduler in ("slurm", "sge"))
        return {job.grant: "its process is gone" for job in jobs if start_time(job.pid) != job.pid_start}


class Journal:
    """The agent's log: what failed for another reason than a busy flock is wrong."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def warning(self, event: str, **fields: str) -> None:
        if event == "reconcile_failed" and "busy for" not in fields["why"]:
            self._log.say(WRONG, f"reconcile failed: {fields['why']}")


class Worker:
    """A process with up to six jobs, a hold and an agent's reconciler of its own."""

    def __init__(self, state: Path, slot: int, log: Log, choices: random.Random, verdict: VerdictFile) -> None:
        self.log, self.choices, self.slot, self.verdict = log, choices, slot, verdict
        self.node = Node(Directory(str(state)), boot_id("/proc"), None, verdict, fresh=True)
        self.store: Store = WitnessedStore(self.node.state, log)
        self.node.store = self.store
        epilog.Store = lambda state: WitnessedStore(state, log)  # type: ignore[misc,assignment]
        self.names = sorted({name for unit in verdict.units for name in (unit.unit, unit.gpu)})
        # One job id with many tasks, one with many clusters, one alone: what tells them apart has to be compared.
        self.identities: list[Identity] = [
            *(("sge", "", "100", str(2 * slot + n)) for n in (0, 1)),
            *(("slurm", f"c{slot}", str(200 + n), "") for n in (0, 1)),
            *(("local", "", f"{os.getpid()}x{n}", "") for n in (0, 1)),  # no successor frees these, only a reconcile
        ]
        self.jobs: dict[Identity, Owner] = {}
        self.held: Owner | None = None
        self.reconciler = Reconciler(self.store, EndedWithTheirProcess(), Journal(log))
        self.facts = NodeFacts(boot_id=self.node.boot_id, monotonic=time.monotonic())
        self.table = [
            (30, self.start),
            (30, self.end),
            (5, self.end_again),
            (3, self.hold),
            (6, self.unhold),
            (2, self.retire),
            (5, self.restore),
            (12, self.reconcile),
            (3, self.sweep),
            (15, self.look),
            (int(slot == 0), self.take_events),  # a node has one agent
        ]

    def one(self) -> None:
        """Do one random operation."""
        weights, operations = zip(*self.table)
        self.choices.choices(operations, weights)[0]()

    def wrong(self, words: str) -> None:
        self.log.say(WRONG, words)

    def start(self) -> None:
        """A prolog; for a job that has its units already, one of a requeue without epilog."""
        if self.jobs and self.choices.random() > RERUN:
            return self.end()
        identity = self.choices.choice(list(self.jobs) or self.identities)
        scheduler, cluster, job, task = identity
        count = self.choices.choice((1, 1, 2, 3))
        if identity in self.jobs:
            self.log.say(RELEASING, self.jobs[identity].grant)
        owner = self.node.owner(scheduler, job, cluster=cluster, task=task)
        self.log.say(BEGIN, owner.grant, scheduler, owner.pid)
        got: tuple[str, ...] = ()
        try:
            if scheduler == "slurm":
                got = prolog.record(self.node, owner, self.choices.sample(self.verdict.units, count)).locked
            else:
                got = tuple(u.unit for u in prolog.take(self.node, self.verdict, owner, count, wait=0.0))
                if len(got) != count:
                    self.wrong(f"{len(got)} units instead of {count}")
        except UnitsUnavailable:
            pass
        self.jobs.pop(identity, None)
        if got:
            self.jobs[identity] = owner
            if got != owner.units:
                self.wrong(f"the job was told {got}, the lock says {owner.units}")
        else:
            time.sleep(self.choices.random() * REST)
        return None

    def end(self) -> None:
        """An epilog: exactly what the prolog locked comes back."""
        if not self.jobs:
            return self.start()
        identity = self.choices.choice(list(self.jobs))
        owner = self.jobs[identity]
        self.log.say(RELEASING, owner.grant)
        freed = epilog.release(self.node.state, *identity)
        del self.jobs[identity]
        if sorted(freed) != sorted(owner.units) or any(was.grant != owner.grant for was in freed.values()):
            self.wrong(f"epilog of {identity} freed {sorted(freed)} and not {sorted(owner.units)}")
        return None

    def end_again(self) -> None:
        """An epilog of a job that holds nothing, or what a process of this slot held that was killed."""
        idle = [identity for identity in self.identities if identity not in self.jobs]
        if idle:
            freed = epilog.release(self.node.state, *self.choices.choice(idle))
            if any(owner.pid == str(os.getpid()) for owner in freed.values()):
                self.wrong(f"the epilog of a job without units freed {sorted(freed)}")

    def hold(self) -> None:
        """An administrator's hold: all of the units, or none and an error."""
        if self.held is not None:
            return self.unhold()
        owner = self.node.owner(HOLD, f"hold-{self.slot}")
        owner.units = tuple(self.choices.sample(self.names, self.choices.randint(1, 3)))
        self.log.say(BEGIN, owner.grant, HOLD, owner.pid)
        with self.store.exclusive():
            self.store.sweep()
            before = set(self.store.owners())
            try:
                self.store.claim(owner)
            except UnitHeld:
                after = self.store.owners()
                if set(after) != before or not before.intersection(owner.units):
                    self.wrong(f"a refused hold of {owner.units} left {sorted(after)} of {sorted(before)}")
            else:
                self.held = owner
        return None

    def unhold(self) -> None:
        """Give the hold back by its grant."""
        owner = self.held
        if owner is None:
            return
        self.log.say(RELEASING, owner.grant)
        with self.store.exclusive():
            freed = self.store.release(lambda found: found.grant == owner.grant)
        self.held = None
        if sorted(freed) != sorted(owner.units):
            self.wrong(f"the hold freed {sorted(freed)} and not {owner.units}")

    def give_up_holds(self) -> None:
        """Release what a killed process of this slot held by hand: nobody else ever does."""
        with self.store.exclusive():
            name = f"hold-{self.slot}"
            for grant in {o.grant for o in self.store.owners().values() if o.scheduler == HOLD and o.job == name}:
                self.log.say(RELEASING, grant)
            self.store.release(lambda owner: owner.scheduler == HOLD and owner.job == name)

    def retire(self) -> None:
        with self.store.exclusive():
            self.store.retire(self.choices.choice(self.names), [("reason", "race"), ("by", str(os.getpid()))])

    def restore(self) -> None:
        with self.store.exclusive():
            retired = sorted(self.store.retired())
            if retired:
                self.store.restore(self.choices.choice(retired))

    def reconcile(self) -> None:
        self.reconciler.run(self.facts, {})

    def sweep(self) -> None:
        with self.store.exclusive():
            self.store.sweep()

    def look(self) -> None:
        """Read without the flock, as `status` does: an owner is complete or absent, a retirement likewise."""
        torn = [f"{unit}: {owner.run}" for unit, owner in self.store.owners().items() if owner.scheduler == UNREADABLE]
        torn += [f"{unit}: {facts}" for unit, facts in self.store.retired().items() if facts["reason"] != "race"]
        if torn:
            self.wrong(f"read half-written: {torn}")

    def take_events(self) -> None:
        events.take(self.node.state)

    def finish(self) -> None:
        """End all that this process holds."""
        while self.jobs:
            _patiently(self.end)
        _patiently(self.unhold)


def _patiently(operation: object) -> None:
    for _ in range(60):
        try:
            return operation()  # type: ignore[operator,no-any-return]
        except LockBusy:
            continue
    raise LockBusy("lock", 60.0)


class Shared:
    """Operations done, one number a slot, in memory that all processes share and that outlives each of them."""

    def __init__(self, slots: int) -> None:
        self._memory = mmap.mmap(-1, COUNTER.size * slots)
        self._slots = slots

    def done(self, slot: int) -> int:
        return int(COUNTER.unpack_from(self._memory, COUNTER.size * slot)[0])

    def count(self, slot: int) -> None:
        COUNTER.pack_into(self._memory, COUNTER.size * slot, self.done(slot) + 1)

    def total(self) -> int:
        return sum(map(self.done, range(self._slots)))


def run(state: Path, log: Log, slot: int, seed: str, quota: int, shared: Shared, units: Sequence[UnitLine]) -> None:
    """Be the worker of a slot until its quota is done; exit 0, or 1 after writing down what went wrong.

    Never returns: this process is a copy of the test's.
    """
    status = 1
    try:
        choices = random.Random(seed)  # noqa: S311  a race, not a secret
        verdict = VerdictFile(boot_id("/proc"), time.monotonic(), tuple(units), interval=10.0)
        worker = Worker(state, slot, log, choices, verdict)
        doom = Doom(log)
        busy = 0
        _patiently(worker.give_up_holds)
        descriptors = len(os.listdir("/proc/self/fd"))
        while shared.done(slot) < quota:
            if choices.random() < (DOOM if worker.jobs else DOOM / 5):
                doom.arm(choices.randint(1, LAST_CHANGE))
            try:
                worker.one()
            except LockBusy:
                busy += 1
            else:
                shared.count(slot)
            doom.arm(0)
        worker.finish()
        log.say("D", "busy", busy)
        if len(os.listdir("/proc/self/fd")) != descriptors:
            worker.wrong("descriptors leak")
        status = 0
    except (NodeAgentError, OSError, LookupError, ValueError, AssertionError, TypeError, AttributeError):
        log.say(WRONG, " | ".join(traceback.format_exc().splitlines()[-7:]))
    finally:
        os._exit(status)
