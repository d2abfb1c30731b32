"""Frees what epilogs have handed over: looks at the GPU, brings its modes back, retires what a job has soiled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import inf

from nodeagent.agent.actions import Actions, NotRecorded
from nodeagent.agent.journal import Log
from nodeagent.clock import Clock
from nodeagent.config.model import Config
from nodeagent.errors import NodeAgentError
from nodeagent.gpu.facts import GpuFacts, GpuSource, NodeFacts
from nodeagent.health.leftover import CHECKS, Leftover, left_on
from nodeagent.health.units import Instances
from nodeagent.history.entry import DRY_RUN, RETIRE
from nodeagent.lock.cleaning import EVENTS, heard, in_cleaning, listen
from nodeagent.lock.record import CLEANING, Owner
from nodeagent.lock.unit import device
from nodeagent.policy.decide import needs
from nodeagent.state.boot import start_time
from nodeagent.state.files import Directory
from nodeagent.state.processes import owner_uid

_SOON, _LATER = 0.05, 1.0
"""Seconds between two looks at a GPU that is not clean: at first, and at most."""
_MOST_SAID = 1000
KEEP = "keep"
MODES = ("compute_mode", "persistence", "power_limit", "application_clocks")


class Cleaner:
    """Looks after units in cleaning: when an epilog wakes it, until they are done, and once a cycle."""

    def __init__(self, config: Config, actions: Actions, source: GpuSource, clock: Clock, log: Log) -> None:
        self._config = config
        self._actions = actions
        self._source = source
        self._clock = clock
        self._log = log
        self.called = False
        """Whether somebody has asked for a cycle out of turn, since this was last set to False."""
        self._attendant = -1
        self._answering: set[str] = set()
        self._since: dict[tuple[str, str], float] = {}
        self._said: set[tuple[str, ...]] = set()

    def successor(self, config: Config, actions: Actions, source: GpuSource) -> Cleaner:
        """Return the one that goes on with another configuration."""
        new = Cleaner(config, actions, source, self._clock, self._log)
        new._attendant, new._answering = self._attendant, self._answering
        new._since, new._said, new.called = self._since, self._said, self.called
        return new

    # -- being woken --------------------------------------------------------------------------------------------------

    def begin(self, state: Directory) -> None:
        """Listen to epilogs; while nobody does they free units themselves."""
        try:
            self._attendant = listen(state)
        except OSError as error:
            self._log.error("step_failed", step="listen", why=str(error))

    def fileno(self) -> int:
        """Return the descriptor that epilogs make readable; -1 for none."""
        return self._attendant

    def hear(self) -> None:
        """Take up what the agent was woken for."""
        self.called = self.called or EVENTS in heard(self._attendant)

    def close(self) -> None:
        """Listen no more."""
        if self._attendant >= 0:
            os.close(self._attendant)
        self._attendant = -1

    # -- cleaning -----------------------------------------------------------------------------------------------------

    def see(self, facts: NodeFacts) -> None:
        """Take note of which GPUs answer: one that does not is looked at by samples alone, which bear with it."""
        self._answering = {gpu.uuid for gpu in facts.gpus if gpu.error is None}

    def run(self, instances: Instances) -> float:
        """Free what is clean, retire what will not be; returns in how many seconds it wants to be called again."""
        self.hear()
        try:
            return self._run(instances)
        except (NodeAgentError, OSError) as error:  # a flock, a full disk: tried again
            self._log.warning("cleaning_failed", why=str(error))
            return _LATER

    def _run(self, instances: Instances) -> float:
        owners = self._actions.store.owners()
        waiting = in_cleaning(owners)
        now = self._clock.monotonic()
        self._since = {(unit, o.grant): self._since.get((unit, o.grant), now) for unit, o in waiting.items()}
        if not waiting:
            return inf
        gpu_of = _gpus(owners, instances)
        looked = self._source.look(sorted(self._answering.intersection(gpu_of[unit] for unit in waiting)))
        gpus = {gpu.uuid: gpu for gpu in looked if gpu.error is None}
        retired = self._actions.retired()
        busy = {gpu_of[unit] for unit in owners.keys() - waiting.keys()}
        done: dict[str, Owner] = {}
        tended: set[str] = set()
        for unit, owner in waiting.items():
            uuid = gpu_of[unit]
            # an instance that is gone, a unit that is out of service, a GPU on which others work: nothing is judged
            gone = unit.startswith("MIG-") and all(unit != one.uuid for one in instances.get(uuid, ()))
            if gone or uuid in busy or not retired.keys().isdisjoint((unit, uuid)):
                done[unit] = owner
            elif uuid in gpus and self._is_done(unit, owner, gpus[uuid], now):
                if uuid not in tended:
                    tended.add(uuid)
                    self._tend(uuid)
                done[unit] = owner
        self._free(done)
        left = waiting.keys() - done.keys()
        if not any(gpu_of[unit] in gpus for unit in left):  # a GPU that does not answer is asked once a cycle
            return inf
        longest = max(now - self._since[unit, waiting[unit].grant] for unit in left)
        return min(_LATER, max(_SOON, longest / 4))

    def _is_done(self, unit: str, owner: Owner, gpu: GpuFacts, now: float) -> bool:
        """Say whether a unit is to be freed: it is clean, or has just been retired."""
        uid = int(owner.uid) if owner.uid.isdigit() else 0
        proc = self._config.roots.proc
        limit = self._config.cleanup.leftover_memory
        left = left_on(gpu, unit, uid, lambda pid: owner_uid(proc, pid), limit)
        if left is None:
            for process in gpu.processes:
                self._say_once("foreign_process", gpu.uuid, str(process.pid), gpu_uuid=gpu.uuid, pid=process.pid)
            return True
        if now - self._since[unit, owner.grant] < self._config.cleanup.patience:
            return False
        if self._actions.maintenance() is not None:  # it waits, held: it is as it must not be given to a job
            self._say_once("retire", unit, owner.grant, gpu_uuid=unit, waits=True, check=left.check, why=left.evidence)
            return False
        self._retire(device(unit), owner, left)
        return True

    def _retire(self, unit: str, owner: Owner, left: Leftover) -> None:
        job = f"{owner.job}.{owner.task}" if owner.task else owner.job
        reason = needs(f"left by job {job}: {left.evidence} ({unit})", left.action)
        fields = {"gpu_uuid": unit, "job": owner.job, "check": left.check, "why": reason}
        if self._config.policy.dry_run:
            self._log.warning("retire", dry_run=True, **fields)
            self._actions.deed(RETIRE, unit, reason, left.action.word, after=DRY_RUN)
            return
        proc = self._config.roots.proc
        processes = " ".join(f"{pid}:{start_time(pid, proc)}" for pid in left.processes[:8])
        try:
            self._actions.retire(unit, reason, left.check, left.action, processes=processes)
        except NotRecorded as error:
            self._log.error("not_recorded", why=str(error))
        self._log.warning("retire", **fields)

    def _tend(self, uuid: str) -> None:
        """Bring the modes back. What is refused keeps no GPU: a job without root's rights cannot have changed it."""
        cleanup = self._config.cleanup
        wish = {name: value for name in MODES if (value := getattr(cleanup, name)) != KEEP}
        done = self._source.tend(uuid, wish) if wish else None
        if done is None:
            return
        for name, (before, after) in done.changed.items():
            self._log.info("mode_restored", gpu_uuid=uuid, mode=name, before=before, after=after)
        for name, why in done.refused.items():
            self._say_once("mode_refused", uuid, name, why, gpu_uuid=uuid, mode=name, why=why)

    def _free(self, done: Mapping[str, Owner]) -> None:
        if not done:
            return
        grants = {owner.grant for owner in done.values()}
        store = self._actions.store
        with store.exclusive():  # a prolog may have taken one over meanwhile
            freed = store.release(lambda owner: owner.scheduler == CLEANING and owner.grant in grants, done)
        for unit, owner in freed.items():
            self._log.debug("cleaned", gpu_uuid=unit, job=owner.job)

    def _say_once(self, event: str, *what: str, **fields: object) -> None:
        if (event, *what) not in self._said:
            if len(self._said) >= _MOST_SAID:
                self._said.clear()
            self._said.add((event, *what))
            self._log.warning(event, **fields)

    # -- what was retired for what a job left --------------------------------------------------------------------------

    def soiled(self, facts: NodeFacts, instances: Instances) -> set[str]:
        """Return the units, of those retired for what a job left, that are not to come back yet.

        They do when they were read without a fault, the processes are gone and so is the memory.
        """
        gpus = {gpu.uuid: gpu for gpu in facts.gpus if gpu.error is None}
        parents = _parents(instances)
        found = set()
        for unit, record in self._actions.retired().items():
            if record.get("check") in CHECKS:
                gpu = gpus.get(parents.get(unit, unit))
                if gpu is None or self._holds(unit, gpu, record):
                    found.add(unit)
        return found

    def _holds(self, unit: str, gpu: GpuFacts, record: Mapping[str, str]) -> bool:
        proc = self._config.roots.proc
        left = dict(word.split(":", 1) for word in record.get("processes", "").split() if ":" in word)
        if any(start and start_time(pid, proc) == start for pid, start in left.items()):
            return True
        if any(str(process.pid) in left for process in gpu.processes):
            return True
        return left_on(gpu, unit, 0, lambda pid: 0, self._config.cleanup.leftover_memory) is not None


def _gpus(owners: Mapping[str, Owner], instances: Instances) -> dict[str, str]:
    """Return unit → GPU; of an instance that is no more, the GPU that its owner names."""
    parents = _parents(instances)
    return {unit: parents.get(unit) or owner.gpu_of(unit) for unit, owner in owners.items()}


def _parents(instances: Instances) -> dict[str, str]:
    return {instance.uuid: gpu for gpu, found in instances.items() for instance in found}
