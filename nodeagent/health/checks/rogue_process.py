"""rogue-process: a process uses a GPU that its job, or its user, has not been granted.

Source: NVML's lists of processes; who they are and which job's mark they bear, by the kernel; the GPU's locks.
Threshold: two sweeps (`health.strikes`), for a job of several types of GPU may hold one before its lock says so. Right
is a process whose user holds the GPU, unless it bears the mark of another job. Not judged are processes of root and of
service accounts (uid below `health.rogue.from_uid`, 1000) and of `health.rogue.users`, those of Slurm's jobs that have
no lock at all (where hooks are not in use), GPUs that an administrator holds, and nodes on which no lock has been seen
since the agent began.
Severity: WARNING on the GPU: it is well, and two programs are on it.
Action: none: whose process it is says the evidence.
Clears: the process is gone, or has been granted the GPU.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from nodeagent.config.model import Health
from nodeagent.gpu.facts import GpuFacts, Process
from nodeagent.gpu.host import Holder
from nodeagent.health.finding import Finding, Severity
from nodeagent.health.scene import Scene

NAME = "rogue-process"
BY_HAND = ("hold", "maintenance", "unreadable")
_MOST_NAMED = 8


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs with processes that have no grant, one finding a GPU."""
    if not scene.facts.locked:
        return
    locked = {_job(holder) for gpu in scene.facts.gpus for holder in gpu.holders}
    for uuid, gpu in scene.read.items():
        if any(holder.scheduler in BY_HAND for holder in gpu.holders):
            continue
        rogues = [process for process in gpu.processes if _is_rogue(process, gpu, locked, settings)]
        if rogues:
            names = ", ".join(map(_words, rogues[:_MOST_NAMED])) + (", …" if len(rogues) > _MOST_NAMED else "")
            evidence = f"on {scene.units[uuid].place} without a grant: {names}"
            yield Finding(NAME, uuid, Severity.WARNING, evidence)


def _is_rogue(process: Process, gpu: GpuFacts, locked: Collection[str], settings: Health) -> bool:
    if process.uid is None or process.uid < settings.rogue.from_uid or process.user in settings.rogue.users:
        return False
    if process.job and process.job not in locked:
        return False
    own = [holder for holder in gpu.holders if holder.uid == process.uid]
    return not any(process.job in ("", _job(holder)) or holder.scheduler == "cleaning" for holder in own)


def _job(holder: Holder) -> str:
    """A lock's job as a process's mark names it."""
    return f"{holder.scheduler} {holder.job}" + (f".{holder.task}" if holder.task else "")


def _words(process: Process) -> str:
    job = f" of job {process.job}" if process.job else " of no job"
    return f"process {process.pid} ({process.command or '?'}) of {process.user or process.uid}{job}"
