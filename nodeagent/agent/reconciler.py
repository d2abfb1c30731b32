"""Frees locks whose owner is surely gone, by evidence that was seen twice: a look, and another in the next cycle."""

from __future__ import annotations

from collections.abc import Mapping

from nodeagent.agent.journal import Log
from nodeagent.errors import NodeAgentError
from nodeagent.gpu.facts import NodeFacts
from nodeagent.health.units import Instances
from nodeagent.isolation.confine import leftovers, undo_gone
from nodeagent.lock.reconcile import gone
from nodeagent.lock.record import Owner
from nodeagent.lock.store import Store
from nodeagent.scheduler.port import Scheduler
from nodeagent.state.boot import start_time

_LONGEST_PAUSE = 8640
LOOK_AGAIN = 60
"""Cycles between two questions to a controller about the ends of jobs, where nothing hints at one."""


class Reconciler:
    """Looks after locks, once a cycle."""

    def __init__(self, store: Store, scheduler: Scheduler, log: Log) -> None:
        self._store = store
        self._scheduler = scheduler
        self._log = log
        self._suspects: dict[str, str] = {}
        self._waited = 0
        self._pause = 0
        self._hinted = False

    def hint(self) -> None:
        """A hook met a lock that the scheduler thinks is free: the next cycle looks, whatever it costs."""
        self._hinted = True

    def run(self, facts: NodeFacts, instances: Instances) -> None:
        """Free what is over. What cannot be done now (a flock, a controller) is left to the next cycle."""
        try:
            owners = self._store.owners()
            ended = self._ended(owners, facts, instances)
            if gone(owners, facts.boot_id, start_time, ended):
                self._free(facts.boot_id, ended)
            self._undo_isolation()
        except (NodeAgentError, OSError) as error:
            self._log.warning("reconcile_failed", why=str(error))

    def _undo_isolation(self) -> None:
        """Remove what confined jobs that are gone, where no epilog did."""
        if leftovers(self._store.state, self._store.owners()):
            with self._store.exclusive():
                undone = undo_gone(self._store.state, self._store.owners())
            for grant in undone:
                self._log.info("isolation_undone", grant=grant)

    def _ended(self, owners: Mapping[str, Owner], facts: NodeFacts, instances: Instances) -> dict[str, str]:
        """Return the grants whose jobs were over at this look and at the one before, and whose GPUs nobody uses.

        That nobody uses a GPU is known only of one that was read just now without a fault.
        """
        self._waited += 1
        due = self._hinted or bool(self._suspects) or self._waited >= LOOK_AGAIN
        if not owners or (self._scheduler.asks_to_know_ends and not due):
            return {}
        before, self._suspects = self._suspects, {}
        if self._waited < self._pause:
            return {}
        try:
            found = self._scheduler.ended(owners.values())
        except NodeAgentError:
            # A dead file server or controller: each question may leave a hanging process behind.
            self._pause = min(_LONGEST_PAUSE, 2 * max(self._pause, LOOK_AGAIN // 10))
            raise
        self._pause, self._waited, self._hinted = 0, 0, False
        idle = {gpu.uuid for gpu in facts.gpus if gpu.error is None and not gpu.processes}
        self._suspects = {
            owner.grant: found[owner.grant]
            for owner in owners.values()
            if owner.grant in found and idle.issuperset(_gpus(owner, instances))
        }
        return {grant: why for grant, why in self._suspects.items() if grant in before}

    def _free(self, boot_id: str, ended: Mapping[str, str]) -> None:
        with self._store.exclusive():  # judged again under the flock: what was gone may be a new grant by now
            self._store.sweep()
            over = gone(self._store.owners(), boot_id, start_time, ended)
            freed = self._store.release(lambda owner: owner.grant in over)
        for unit, owner in freed.items():
            self._log.warning("lock_reconciled", gpu_uuid=unit, job=owner.job, owner=str(owner), why=over[owner.grant])


def _gpus(owner: Owner, instances: Instances) -> set[str]:
    """Return the GPUs that a grant is of; an instance whose GPU nobody knows stands for itself: no sweep reads it."""
    parents = {instance.uuid: gpu for gpu, parts in instances.items() for instance in parts}
    return {parents.get(unit) or owner.gpu_of(unit) for unit in owner.units}
