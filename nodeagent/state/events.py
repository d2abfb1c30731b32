"""What hooks did: one line an event, appended by them, taken up by the agent. Lean."""

import errno
import fcntl
import os
import time

from nodeagent.errors import UntrustedFile
from nodeagent.state.files import Directory, escape, judge_own, short, unescape

EVENTS = "events"
TAKEN = "events.taken"
DROPPED = "events.dropped"
CAP = 8 << 20
# O_NONBLOCK: a FIFO put in the file's place is an error and no wait
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Event:
    """One thing that happened: `kind`, wall time in seconds, and named texts (job, user, units, why, …)."""

    __slots__ = ("at", "fields", "kind")

    def __init__(self, kind: str, at: float, fields: "dict[str, str]") -> None:
        self.kind = kind
        self.at = at
        self.fields = fields


def append(state: Directory, kind: str, **fields: str) -> bool:
    """Record an event; False when it had to be dropped (cap reached, disk full): then only a counter grows.

    An event is never worth a job: no error of the file system leaves this function.
    """
    columns = [f"{time.time():.3f}", kind, *(f"{key}={escape(short(value))}" for key, value in fields.items() if value)]
    line = ("\t".join(columns) + "\n").encode("utf-8", "surrogateescape")
    try:
        fd = _open_current(state)
        try:
            size = os.fstat(fd).st_size
            if size + len(line) <= CAP:
                if os.write(fd, line) == len(line):
                    return True
                os.ftruncate(fd, size)  # a half line would swallow the next one
        finally:
            os.close(fd)
    except (OSError, UntrustedFile):
        pass
    _count_dropped(state)
    return False


def _open_current(state: Directory) -> int:
    """Open and lock the file that is `events` now (it may be taken up between the opening and the locking)."""
    while True:
        fd = os.open(EVENTS, _APPEND, 0o600, dir_fd=state.fd)
        try:
            _lock_soon(fd)
            status = os.fstat(fd)
            if status.st_nlink:
                judge_own(EVENTS, status)
                return fd
        except (OSError, UntrustedFile):
            os.close(fd)
            raise
        os.close(fd)


def _lock_soon(fd: int) -> None:
    """Take the flock within 0.2 s, or raise: whoever holds it only writes a line or reads what waits."""
    for _ in range(40):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.005)
        else:
            return
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _count_dropped(state: Directory) -> None:
    """Add one byte to a file whose size is the count: no read, no rewrite, works when writers race."""
    try:
        fd = os.open(DROPPED, _APPEND, 0o600, dir_fd=state.fd)
        try:
            judge_own(DROPPED, os.fstat(fd))
            os.write(fd, b".")
        finally:
            os.close(fd)
    except (OSError, UntrustedFile):
        pass


def dropped(state: Directory) -> int:
    """Return how many events have been lost since boot."""
    try:
        return os.stat(DROPPED, dir_fd=state.fd).st_size
    except OSError:
        return 0


def take(state: Directory) -> "list[Event]":
    """Return the events that wait and remove them (the agent only); a crash in between repeats some, loses none.

    What is no file of ours in their place is removed, and an event itself.
    """
    found = []
    for name in (TAKEN, EVENTS):
        try:
            if name == EVENTS:
                os.rename(EVENTS, TAKEN, src_dir_fd=state.fd, dst_dir_fd=state.fd)
            found += [event for line in _take(state) if (event := _decode(line)) is not None]
        except FileNotFoundError:
            continue
        except BlockingIOError:  # somebody stopped in the middle of writing: the next cycle takes it up
            return found
        except UntrustedFile as error:
            _remove_taken(state)
            found.append(Event("events_refused", time.time(), {"why": str(error)}))
    return found


def _take(state: Directory) -> "list[bytes]":
    try:
        fd = os.open(TAKEN, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=state.fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise UntrustedFile(EVENTS, "it is a symbolic link or a socket") from error
        raise
    try:
        judge_own(EVENTS, os.fstat(fd))
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with os.fdopen(os.dup(fd), "rb") as file:
            lines = list(file)
        _remove_taken(state)  # with the flock: a writer that has it open sees that it is gone
        return lines
    finally:
        os.close(fd)


def _remove_taken(state: Directory) -> None:
    try:
        os.unlink(TAKEN, dir_fd=state.fd)
    except IsADirectoryError:
        os.rmdir(TAKEN, dir_fd=state.fd)


def _decode(line: bytes) -> "Event | None":
    at, _, rest = line.decode("utf-8", "surrogateescape").rstrip("\n").partition("\t")
    kind, *columns = rest.split("\t")
    try:
        return Event(kind, float(at), {k: unescape(v) for k, _, v in (c.partition("=") for c in columns)})
    except ValueError:
        return None
