"""What an earlier run of a job still holds, whose epilog never came. Lean."""

from nodeagent.state.processes import all_pids, device_number, holding, owner_uid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nodeagent.hook.node import Node
    from nodeagent.lock.record import Owner
    from nodeagent.state.verdict_file import VerdictFile


def over(node: "Node", verdict: "VerdictFile", owner: "Owner") -> "Callable[[Owner], bool]":
    """Return what says whether a grant is of an earlier run of `owner`'s job that has left nothing behind.

    No scheduler gives a job to a node where its old run is still listed, but a shepherd that was killed leaves its
    job's processes: while one of them has a GPU open, that GPU is not given to the new run. Its lock goes with the
    epilog of the new run, as it is the same job's.
    """
    judged: dict[str, bool] = {}

    def may_go(held: "Owner") -> bool:
        if held.grant == owner.grant or not held.is_job(owner.scheduler, owner.cluster, owner.job, owner.task):
            return False
        if held.grant not in judged:
            left = _left(node, verdict, held)
            judged[held.grant] = not left
            if left:
                node.event("earlier_run_lives", owner, units=" ".join(held.units), why=f"process {left} is left of it")
        return judged[held.grant]

    return may_go


def _left(node: "Node", verdict: "VerdictFile", held: "Owner") -> int:
    """Return a process of the grant's user that has one of its GPUs open; 0 if there is none.

    Others' processes are monitoring. Of instances and shares nothing is known: other jobs have the same file open.
    """
    settings = node.conf.settings if node.conf is not None else {}
    proc, dev = (settings.get(f"roots.{name}", f"/{name}") for name in ("proc", "dev"))
    minors = [unit.minor for unit in verdict.units if unit.unit in held.units and unit.unit == unit.gpu]
    devices = {device_number(f"{dev}/nvidia{minor}") for minor in minors if minor >= 0} - {-1}
    if not devices:
        return 0
    pids = [pid for pid in all_pids(proc) if str(owner_uid(proc, pid)) == held.uid]
    return next((process.pid for process in holding(proc, devices, pids)), 0)
