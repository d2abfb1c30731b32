"""What was done to keep a grant off other GPUs, so that it can be undone: `state_dir/isolation/<grant>`. Lean.

It is written before anything is done, so whatever a crash leaves behind is named by a record.
"""

import os

from nodeagent.errors import UnknownFormat, UntrustedFile
from nodeagent.state.boot import start_time
from nodeagent.state.files import Directory, decode_pairs, encode_pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeagent.lock.record import Owner

ISOLATION = "isolation"
_TEXTS = ("method", "scheduler", "job", "task", "uid", "pid", "pid_start", "place", "origin")
_TEMPORARY_AGE = 60.0


class Confinement:
    """One grant's confinement by one method.

    `place` is the cgroup that was made for it and `origin` the one that its processes came from (both empty with
    device files); `pid` with `pid_start` is the hook, or the `exec`, that makes it. `units` and `files` are the
    grant's own, in the same order where each unit has one file.
    """

    __slots__ = ("files", "grant", "units", *_TEXTS)

    def __init__(
        self,
        grant: str,
        method: str,
        scheduler: str = "",
        job: str = "",
        task: str = "",
        uid: str = "",
        pid: str = "",
        pid_start: str = "",
        place: str = "",
        origin: str = "",
        units: "tuple[str, ...]" = (),
        files: "tuple[str, ...]" = (),
    ) -> None:
        self.grant = grant
        self.method = method
        self.scheduler = scheduler
        self.job = job
        self.task = task
        self.uid = uid
        self.pid = pid
        self.pid_start = pid_start
        self.place = place
        self.origin = origin
        self.units = units
        self.files = files

    def is_job(self, scheduler: str, job: str, task: str) -> bool:
        """Say whether it was made for that job."""
        return (self.scheduler, self.job, self.task) == (scheduler, job, task)

    def being_made(self) -> bool:
        """Say whether the process that makes it still runs (an `exec` becomes its command, and runs on)."""
        return bool(self.pid) and start_time(self.pid) == self.pid_start

    def write(self, state: Directory) -> None:
        """Record it.

        Raises:
            OSError: it could not be recorded, so it must not be done.

        """
        pairs = [(key, str(getattr(self, key))) for key in _TEXTS]
        directory = state.sub(ISOLATION, create=True)
        try:
            text = encode_pairs([*pairs, ("units", " ".join(self.units)), ("files", " ".join(self.files))])
            directory.replace(self.grant, text)
        finally:
            directory.close()

    def forget(self, state: Directory) -> None:
        """Remove the record: nothing is left of it."""
        directory = state.sub(ISOLATION)
        try:
            directory.remove(self.grant)
        finally:
            directory.close()


def confinement_for(owner: "Owner", method: str) -> Confinement:
    """Return a confinement that this process is about to make for a grant."""
    pid = os.getpid()
    return Confinement(
        owner.grant, method, owner.scheduler, owner.job, owner.task, owner.uid, str(pid), start_time(pid)
    )


def read_all(state: Directory) -> "list[Confinement]":
    """Return all that is recorded. A record that cannot be read is left where it is, for a person to look at."""
    try:
        directory = state.sub(ISOLATION)
    except FileNotFoundError:
        return []
    found = []
    try:
        directory.forget_temporaries(_TEMPORARY_AGE)
        for name in directory.names():
            try:
                pairs = decode_pairs(name, directory.read(name))
                lists = {key: tuple(pairs[key].split()) for key in ("units", "files")}
                found.append(Confinement(name, **{key: pairs[key] for key in _TEXTS}, **lists))  # type: ignore[arg-type]
            except (OSError, KeyError, UnknownFormat, UntrustedFile):
                continue
    finally:
        directory.close()
    return found
