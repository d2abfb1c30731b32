"""Units between two jobs: their lock says `cleaning` until the agent has looked at the GPU. Lean."""

import os

from nodeagent.lock.record import CLEANING, Owner
from nodeagent.state.files import Directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from nodeagent.lock.store import Store

WAKE = "wake"
"""A FIFO of the agent's in `state_dir`: each byte asks it for something.

CLEAN: to look after the units that are in cleaning. EVENTS: to take up what waits in `events` now, in a cycle out of
turn.
"""
CLEAN, EVENTS = b"c", b"e"
_S_IFMT, _S_IFIFO = 0o170000, 0o010000


def open_attendant(state: Directory) -> int:
    """Return a descriptor by which the agent can be woken; -1 where none listens. Never waits: it is the caller's."""
    try:
        fd = os.open(WAKE, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=state.fd)
    except OSError:  # ENXIO: it was made by an agent that is gone
        return -1
    if os.fstat(fd).st_mode & _S_IFMT == _S_IFIFO:
        return fd
    os.close(fd)
    return -1


def wake(attendant: int, word: bytes = CLEAN) -> None:
    """Wake the agent, and let the descriptor go. Where the FIFO is full it has been woken often enough."""
    try:
        os.write(attendant, word)
    except OSError:
        pass
    os.close(attendant)


def listen(state: Directory) -> int:
    """Return the agent's end of the FIFO, made if it is missing; opened for both ways, so that it never ends.

    Raises:
        OSError: it cannot be made; then nobody is asked to clean, and hooks free units at once.

    """
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(2):
        try:
            os.mkfifo(WAKE, 0o600, dir_fd=state.fd)
        except FileExistsError:
            pass
        fd = os.open(WAKE, flags, dir_fd=state.fd)
        if os.fstat(fd).st_mode & _S_IFMT == _S_IFIFO:
            return fd
        os.close(fd)
        os.unlink(WAKE, dir_fd=state.fd)
    raise OSError(17, "something that is no FIFO comes back", f"{state.path}/{WAKE}")


def heard(attendant: int) -> bytes:
    """Take the bytes that wait in the agent's end, and return of each kind one."""
    words: set[int] = set()
    try:
        while chunk := os.read(attendant, 4096):
            words.update(chunk)
    except OSError:
        pass
    return bytes(words)


def in_cleaning(owners: "Mapping[str, Owner]") -> "dict[str, Owner]":
    """Return the units that are in cleaning."""
    return {unit: owner for unit, owner in owners.items() if owner.scheduler == CLEANING}


def take_over(store: "Store", state: Directory, fresh: bool, units: "Collection[str] | None" = None) -> "list[str]":
    """Free, under the flock, the units in cleaning (all, or of `units`) where no agent will; return them.

    `fresh` says whether the agent's word is: one that listens and has not spoken for long is stopped, or hangs.
    """
    waiting = [unit for unit in in_cleaning(store.owners()) if units is None or unit in units]
    attendant = open_attendant(state) if waiting and fresh else -1
    if attendant >= 0:
        os.close(attendant)
        return []
    return list(store.release(lambda owner: owner.scheduler == CLEANING, waiting)) if waiting else []
