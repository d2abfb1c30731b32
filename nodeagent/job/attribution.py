"""Who holds each GPU by a lock, and which job the processes on it are of, by the kernel's word. Judges nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from nodeagent.clock import Clock
from nodeagent.gpu.facts import GpuFacts, NodeFacts, Process, altered
from nodeagent.gpu.host import Holder
from nodeagent.lock.mark import Mark, slurm_job
from nodeagent.lock.record import Owner
from nodeagent.state.processes import find, name_of, owner_uid

_TICKS = os.sysconf("SC_CLK_TCK")


class Attribution:
    """Tells whose the processes on a node's GPUs are.

    Args:
        proc: the root of /proc.
        admin_uids: who may own Grid Engine's spool directories.
        user_name: uid → the user's name.
        clock: the time.

    """

    def __init__(self, proc: str, admin_uids: Collection[int], user_name: Callable[[int], str], clock: Clock) -> None:
        self._proc = proc
        self._admin_uids = " ".join(map(str, admin_uids))
        self._user_name = user_name
        self._clock = clock
        self._marks: dict[str, Mark] = {}
        """By grant."""

    def of(self, facts: NodeFacts, owners: Mapping[str, Owner]) -> NodeFacts:
        """Return the facts with the holders of each GPU, and with who its processes are and whose mark they bear.

        `owners` (unit → owner) are those of just now, after the sweep: the lock of a process that was seen, and is not
        gone, is still there. A process that is gone, or whose number has been given to another one since the sweep,
        keeps its number and no more.
        """
        grants = {owner.grant: owner for owner in owners.values()}
        # a run's group is read once: its directory may lie on a file server
        self._marks = {
            grant: self._marks.get(grant) or Mark(owner, self._admin_uids) for grant, owner in grants.items()
        }
        marks = tuple(self._marks.values())
        ended = self._clock.monotonic() - facts.monotonic
        pids = {process.pid for gpu in facts.gpus for process in gpu.processes}
        known = {pid: self._identified(pid, marks, ended) for pid in pids}
        gpus = (
            altered(
                gpu,
                holders=_holders(gpu, owners),
                processes=tuple(altered(known[process.pid], memory=process.memory) for process in gpu.processes),
            )
            for gpu in facts.gpus
        )
        return altered(facts, gpus=tuple(gpus))

    def _identified(self, pid: int, marks: Sequence[Mark], ended: float) -> Process:
        """Who a process is, if it is one that the sweep, which ended so many seconds ago, can have seen."""
        proc = self._proc
        process = find(proc, pid)
        if process is None or time.clock_gettime(time.CLOCK_BOOTTIME) - int(process.start) / _TICKS < ended:
            return Process(pid)
        uid, command = owner_uid(proc, pid), name_of(proc, pid)
        job = self._job(pid, uid, marks)
        now = find(proc, pid)
        if uid < 0 or now is None or now.start != process.start:  # what was read may be another's, of its number
            return Process(pid)
        named = next((mark.owner.user for mark in marks if mark.uid == uid and mark.owner.user), "")
        return Process(pid, None, uid, named or self._user_name(uid), command, job)

    def _job(self, pid: int, uid: int, marks: Sequence[Mark]) -> str:
        """The job whose mark a process bears, as its lock names it; a job of Slurm's also without a lock.

        Only by what the kernel says: of a process that hangs in the driver the environment cannot be read.
        """
        for mark in marks:
            if mark.uid == uid and mark.by_kernel(self._proc, pid):
                return job_name(mark.owner.scheduler, mark.owner.job, mark.owner.task)
        number = slurm_job(self._proc, pid)
        return job_name("slurm", number) if number else ""


def job_name(scheduler: str, job: str, task: str = "") -> str:
    """Return a job as facts name it: `slurm 17`, `sge 8.3`."""
    return f"{scheduler} {job}.{task}" if task else f"{scheduler} {job}"


def _holders(gpu: GpuFacts, owners: Mapping[str, Owner]) -> tuple[Holder, ...]:
    instances = {instance.uuid for instance in gpu.mig}
    mine = (owner for unit, owner in owners.items() if unit in instances or owner.gpu_of(unit) == gpu.uuid)
    return tuple(dict.fromkeys(_holder(owner) for owner in mine))


def _holder(owner: Owner) -> Holder:
    uid = int(owner.uid) if owner.uid.isascii() and owner.uid.isdigit() else -1
    return Holder(owner.scheduler, owner.job, owner.task, owner.user, uid)
