"""What a node itself shows of a grant whose job may be over: processes, open devices, Slurm's steps. Lean."""

from nodeagent.state.boot import start_time
from nodeagent.state.processes import all_pids, holding, uids, works_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from nodeagent.lock.record import Owner


def in_use(proc: str, devices: "Collection[int]", owner: "Owner", of_user: bool = False) -> bool:
    """Say whether a process that can be of this grant has one of the devices (by number) open.

    The processes of a job begin after its prolog, so what has run longer than the grant is none: a daemon that keeps
    GPUs open, such as nvidia-persistenced. With `of_user` only the processes of the job's user count, where the user
    is known: for a caller that has other evidence of the rest.
    """
    if not devices:
        return False
    since = int(owner.pid_start or 0)
    user = int(owner.uid) if of_user and owner.uid.isdigit() else None
    later = [pid for pid in all_pids(proc) if int(start_time(pid, proc) or -1) >= since]
    return any(user is None or user in uids(proc, process.pid) for process in holding(proc, devices, later))


def is_run(proc: str, owner: "Owner") -> bool:
    """Say whether somebody works in the spool directory of a Grid Engine run: its shepherd does, for all its life."""
    return any(works_in(proc, pid, owner.run) for pid in all_pids(proc))


def steps(names: "Iterable[str]") -> "dict[str, set[str]]":
    """Return job -> its steps on this node, from the names of the sockets in a SlurmdSpoolDir (`NODE_JOB.STEP`).

    The node's name is not compared: whose step it is does not matter where the question is whether one is left.
    """
    found: dict[str, set[str]] = {}
    for name in names:
        job, _, step = name.rpartition("_")[2].partition(".")
        if job.isdigit() and step:
            found.setdefault(job, set()).add(step)
    return found
