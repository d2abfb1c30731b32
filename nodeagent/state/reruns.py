"""How often this node has sent a Grid Engine job back: one small file a job. Lean."""

from nodeagent.errors import UntrustedFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeagent.state.files import Directory

_PREFIX = "reruns."


def _name(job: str, task: str) -> str:
    return f"{_PREFIX}{job}.{task}"


def count(state: "Directory", job: str, task: str) -> int:
    """Return how often the job was sent back since it last got its GPUs here; 0 where that cannot be read."""
    try:
        return len(state.read(_name(job, task)))
    except (OSError, UntrustedFile):
        return 0


def add(state: "Directory", job: str, task: str) -> None:
    """Count one more."""
    state.replace(_name(job, task), "." * (count(state, job, task) + 1))


def forget(state: "Directory", job: str, task: str) -> None:
    """The job got its GPUs, or waits for somebody to look; a count that will not go costs no job its start."""
    try:
        state.remove(_name(job, task))
    except OSError:
        pass


def sweep(state: "Directory", seconds: float) -> None:
    """Forget the jobs that have not returned for so long: they ran elsewhere, or were deleted."""
    for name in state.names():
        if name.startswith(_PREFIX) and state.age(name) > seconds:
            state.remove(name)
