"""Giving a job's units back: what it holds on this node and nothing else, as often as it is called. Lean."""

from nodeagent.hook.node import Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeagent.lock.record import Owner


def release(node: Node, scheduler: str, name: str, job: str, task: str = "") -> "dict[str, Owner]":
    """Free the units of this job on this node (by the lock's own record, never by the job's environment).

    Raises:
        LockBusy, OSError: nothing was freed, or not all; the agent's reconciler or a later call does.

    """
    with node.store.exclusive():
        node.store.sweep()
        freed = node.store.release(lambda owner: owner.is_job(scheduler, name, job, task))
    if freed:
        node.event("release", next(iter(freed.values())), units=" ".join(freed))
    return freed
