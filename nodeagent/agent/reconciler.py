"""Frees locks whose owner is surely gone, by evidence that was seen twice: a look, and another in the next cycle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from nodeagent.agent.journal import Log
from nodeagent.config.model import Roots
from nodeagent.errors import NodeAgentError
from nodeagent.gpu.facts import GpuFacts, NodeFacts
from nodeagent.health.units import Instances
from nodeagent.isolation.confine import leftovers, undo_gone
from nodeagent.lock.evidence import in_use
from nodeagent.lock.reconcile import gone
from nodeagent.lock.record import CLEANING, Owner
from nodeagent.lock.store import Store
from nodeagent.scheduler.port import Scheduler
from nodeagent.state.boot import start_time
from nodeagent.state.processes import device_number, uids

_LONGEST_PAUSE = 8640
LOOK_AGAIN = 60
"""Cycles between two questions to a controller about the ends of jobs, where nothing hints at one."""


class _Evidence:
    """One way to know that jobs are over: asked every so many cycles, ever more seldom while there is no answer."""

    def __init__(self, ask: Callable[[Iterable[Owner]], dict[str, str]], every: int) -> None:
        self._ask = ask
        self._every = every
        self._suspects: dict[str, str] = {}
        self._waited = 0
        self._pause = 0
        self.hinted = False

    def confirmed(self, owners: Mapping[str, Owner], unused: Callable[[Owner], bool]) -> dict[str, str]:
        """Return the grants whose jobs were over at this look and at the one before, and whose GPUs nobody uses.

        Raises:
            NodeAgentError: there is no answer.

        """
        self._waited += 1
        if not owners or not (self.hinted or self._suspects or self._waited >= self._every):
            return {}
        before, self._suspects = self._suspects, {}
        if self._waited < self._pause:
            return {}
        try:
            found = self._ask(owners.values())
        except NodeAgentError:
            # A dead file server or controller: each question may leave a hanging process behind.
            self._pause = min(_LONGEST_PAUSE, 2 * max(self._pause, LOOK_AGAIN // 10))
            raise
        self._pause, self._waited, self.hinted = 0, 0, False
        over = {owner.grant: owner for owner in owners.values() if owner.grant in found}
        self._suspects = {grant: found[grant] for grant, owner in over.items() if unused(owner)}
        return {grant: why for grant, why in self._suspects.items() if grant in before}


class Reconciler:
    """Looks after locks, once a cycle."""

    def __init__(self, store: Store, scheduler: Scheduler, log: Log, roots: Roots | None = None) -> None:
        self._store = store
        self._log = log
        self._roots = roots or Roots()
        self._here = _Evidence(scheduler.ended_here, 1)
        self._told = _Evidence(scheduler.ended, LOOK_AGAIN)

    def hint(self) -> None:
        """A hook met a lock that the scheduler thinks is free: the next cycle looks, whatever it costs."""
        self._told.hinted = True

    def run(self, facts: NodeFacts, instances: Instances) -> None:
        """Free what is over. What cannot be done now (a flock, a controller) is left to the next cycle."""
        ended: dict[str, str] = {}
        try:
            owners = self._store.owners()
            for evidence in (self._told, self._here):
                try:
                    ended |= evidence.confirmed(owners, lambda owner: self._unused(owner, facts, instances))
                except NodeAgentError as error:
                    self._log.warning("reconcile_failed", why=str(error))
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

    def _unused(self, owner: Owner, facts: NodeFacts, instances: Instances) -> bool:
        """Say whether nobody uses the GPUs of a grant: NVML names no process, and none of its user's has them open.

        That is known only of GPUs that were read just now without a fault. On a GPU of which the grant has a share or
        an instance other users' processes are other jobs'.
        """
        names = _gpus(owner, instances)
        whole = names == set(owner.units)
        gpus = [gpu for gpu in facts.gpus if gpu.uuid in names and gpu.error is None]
        gpus = [gpu for gpu in gpus if not (gpu.processes if whole else self._of_user(gpu, owner))]
        devices = {device_number(f"{self._roots.dev}/nvidia{gpu.minor}") for gpu in gpus if gpu.minor is not None}
        return len(gpus) == len(names) and not in_use(self._roots.proc, devices - {-1}, owner, of_user=True)

    def _of_user(self, gpu: GpuFacts, owner: Owner) -> list[int]:
        """Return the processes on a GPU that are not known to be other users' than the owner's."""
        users = {process.pid: uids(self._roots.proc, process.pid) for process in gpu.processes}
        return [pid for pid, known in users.items() if not (owner.uid.isdigit() and known) or int(owner.uid) in known]

    def _free(self, boot_id: str, ended: Mapping[str, str]) -> None:
        with self._store.exclusive():  # judged again under the flock: what was gone may be a new grant by now
            self._store.sweep()
            over = gone(self._store.owners(), boot_id, start_time, ended)
            # what is in cleaning goes with another boot only, though the rest of its grant be over
            freed = self._store.release(
                lambda owner: owner.grant in over and (owner.scheduler != CLEANING or owner.boot_id != boot_id)
            )
        for unit, owner in freed.items():
            self._log.warning("lock_reconciled", gpu_uuid=unit, job=owner.job, owner=str(owner), why=over[owner.grant])


def _gpus(owner: Owner, instances: Instances) -> set[str]:
    """Return the GPUs that a grant is of; an instance whose GPU nobody knows stands for itself: no sweep reads it."""
    parents = {instance.uuid: gpu for gpu, parts in instances.items() for instance in parts}
    return {parents.get(unit) or owner.gpu_of(unit) for unit in owner.units}
