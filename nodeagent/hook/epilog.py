"""Giving a job's units back: what it holds and nothing else, as often as it is called. Lean."""

import os

from nodeagent.hook import isolation
from nodeagent.lock.store import Store
from nodeagent.state import events
from nodeagent.state.boot import boot_id, start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeagent.lock.record import Owner
    from nodeagent.state.files import Directory


def release(state: "Directory", scheduler: str, cluster: str, job: str, task: str = "") -> "dict[str, Owner]":
    """Free the units of this job by the lock's own record, never by the job's environment.

    Neither configuration nor verdict is asked: a lock is to go however broken the rest of the node is.

    Raises:
        LockBusy, OSError: nothing was freed, or not all; the agent's reconciler or a later call does.

    """
    store = Store(state)
    began, boot = int(start_time(os.getpid()) or 0), boot_id("/proc")
    later: list[Owner] = []

    def mine(owner: "Owner") -> bool:
        if not owner.is_job(scheduler, cluster, job, task):
            return False
        if _is_later(owner, began, boot):
            later.append(owner)
            return False
        return True

    with store.exclusive():
        store.sweep()
        isolation.end(state, store.owners(), scheduler, job, task)
        freed = store.release(mine)
    if later:
        why = "this epilog is an earlier run's; the job has its units again"
        events.append(state, "late_epilog", scheduler=scheduler, job=job, task=task, why=why)
    if freed:
        owner = next(iter(freed.values()))
        fields = {"scheduler": scheduler, "job": job, "task": task, "user": owner.user, "units": " ".join(freed)}
        events.append(state, "release", **fields)
    return freed


def _is_later(owner: "Owner", began: int, boot: str) -> bool:
    """Say whether the grant was made by a process that began after this epilog: a later run of a job that was requeued.

    The scheduler's own word for the run does not tell that: Slurm has raised it before the epilog runs.
    """
    return owner.boot_id == boot and owner.pid_start.isdigit() and int(owner.pid_start) > began
