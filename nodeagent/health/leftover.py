"""What a job left on a GPU that nobody uses any more. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from nodeagent.gpu.facts import GpuFacts, Process
from nodeagent.health.finding import RecoveryAction

PROCESS, MEMORY = "leftover-process", "leftover-memory"
CHECKS = (PROCESS, MEMORY)
"""Of units that are retired for what a job left there: they return when it is gone."""
_MIB = 1 << 20


@dataclass(frozen=True)
class Leftover:
    """What is still there: `check` as it is written into a retirement, evidence in words, the processes."""

    check: str
    evidence: str
    processes: tuple[int, ...] = ()

    @property
    def action(self) -> RecoveryAction:
        """A process that does not die sits in the driver, from where only a reboot takes it; memory goes by a reset."""
        return RecoveryAction.REBOOT_NODE if self.check == PROCESS else RecoveryAction.RESET_GPU


def left_on(gpu: GpuFacts, unit: str, uid: int, owner_of: Callable[[int], int], limit: int) -> Leftover | None:
    """Return what a job left on a unit; None if it is clean.

    Args:
        gpu: as just read, without a fault.
        unit: the GPU, a share of it, or one of its MIG instances. Of an instance only the memory is judged: NVML's
            list of processes is the whole GPU's.
        uid: the job's user; root's (0) tells nothing, for the site's own services are root's.
        owner_of: process number → uid, -1 for one that the kernel does not know (any more).
        limit: bytes that may be in use by nobody.

    Processes of others (a display server, a monitor, a neighbour who does as he likes) are not the job's: they are
    left alone, and what they use is not counted. Where NVML does not say how much that is, memory is not judged.

    """
    instance = next((instance for instance in gpu.mig if instance.uuid == unit), None)
    if instance is not None:
        return _memory(instance.memory_used, (), limit)
    mine = [p for p in gpu.processes if owner_of(p.pid) == -1 or (uid > 0 and owner_of(p.pid) == uid)]
    if mine:
        pids = tuple(process.pid for process in mine)
        return Leftover(PROCESS, f"the job's process {', '.join(map(str, pids[:8]))} is still on the GPU", pids)
    return _memory(gpu.memory_used, gpu.processes, limit)


def _memory(used: int | None, others: Collection[Process], limit: int) -> Leftover | None:
    if used is None or any(process.memory is None for process in others):
        return None
    left = used - sum(process.memory or 0 for process in others)
    if left <= limit:
        return None
    return Leftover(MEMORY, f"{left // _MIB} MiB are in use and no process has them")
