"""How often this node has sent a Grid Engine job back: one small file a job. Lean."""

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeagent.state.files import Directory

_PREFIX = "reruns."


def _name(job: str, task: str) -> str:
    return f"{_PREFIX}{job}.{task}"


def count(state: "Directory", job: str, task: str) -> int:
    """Return how often the job was sent back since it last got its GPUs here."""
    try:
        return len(state.read(_name(job, task)))
    except OSError:
        return 0


def add(state: "Directory", job: str, task: str) -> None:
    """Count one more."""
    state.replace(_name(job, task), "." * (count(state, job, task) + 1))


def forget(state: "Directory", job: str, task: str) -> None:
    """The job got its GPUs, or waits for somebody to look."""
    state.remove(_name(job, task))


def sweep(state: "Directory", seconds: float) -> None:
    """Forget the jobs that have not returned for so long: they ran elsewhere, or were deleted."""
    for name in state.names():
        if name.startswith(_PREFIX) and time.time() - os.stat(name, dir_fd=state.fd).st_mtime > seconds:
            state.remove(name)
