"""Giving a job's units back: what it holds and nothing else, as often as it is called. Lean."""

from nodeagent.hook import isolation
from nodeagent.lock.store import Store
from nodeagent.state import events

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
    with store.exclusive():
        store.sweep()
        isolation.end(state, store.owners(), scheduler, job, task)
        freed = store.release(lambda owner: owner.is_job(scheduler, cluster, job, task))
    if freed:
        owner = next(iter(freed.values()))
        fields = {"scheduler": scheduler, "job": job, "task": task, "user": owner.user, "units": " ".join(freed)}
        events.append(state, "release", **fields)
    return freed
