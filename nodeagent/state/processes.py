"""Processes as /proc shows them: who has a GPU's device file open, which job a process is of. Lean.

Every reader takes the root of the tree (`/proc`, or a test's), and answers "nothing" for a process that is gone.
"""

import os

from nodeagent.state.boot import read_start, start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

_STATUS = 8192
_ENVIRON = 262144


class Process:
    """A process: its number, when it began (clock ticks since boot: tells it from a later one of the same number)."""

    __slots__ = ("pid", "start")

    def __init__(self, pid: int, start: str) -> None:
        self.pid = pid
        self.start = start

    def __repr__(self) -> str:
        return f"Process({self.pid}, {self.start!r})"


def find(proc: str, pid: int) -> "Process | None":
    """Return the process of that number, None if it is gone or a zombie, which holds nothing any more."""
    start = start_time(pid, proc)
    return Process(pid, start) if start else None


def all_pids(proc: str) -> "list[int]":
    """Return the numbers of all processes."""
    return [int(name) for name in os.listdir(proc) if name.isascii() and name.isdigit()]


def named(proc: str, name: str) -> "list[int]":
    """Return the processes whose program has this name (of which the kernel keeps 15 characters)."""
    found = []
    for pid in all_pids(proc):
        try:
            if read_start(f"{proc}/{pid}/comm").strip() == name.encode()[:15]:
                found.append(pid)
        except OSError:
            continue
    return sorted(found)


def device_number(path: str) -> int:
    """Return the device number of a device file; -1 where there is none."""
    try:
        return os.stat(path).st_rdev or -1
    except OSError:
        return -1


def open_devices(proc: str, pid: int) -> "set[int]":
    """Return the numbers of the NVIDIA device files that a process has open.

    By their names first: what an open file on a dead file server is cannot be asked without waiting for it. A device
    file of another name is root's to make.
    """
    home = f"{proc}/{pid}/fd"
    found = set()
    try:
        for name in os.listdir(home):
            path = f"{home}/{name}"
            if os.readlink(path).rpartition("/")[2].startswith("nvidia"):
                found.add(os.stat(path).st_rdev)
    except OSError:
        pass  # it ended, or is a kernel thread
    found.discard(0)
    return found


def holding(proc: str, devices: "Collection[int]", pids: "Collection[int] | None" = None) -> "list[Process]":
    """Return the processes (of `pids`, or all) that have one of the devices open."""
    wanted = set(devices)
    found = []
    for pid in all_pids(proc) if pids is None else pids:
        process = find(proc, pid)
        # asked before and after: the files are those of this process, not of another that has its number now
        if process is not None and wanted & open_devices(proc, pid) and start_time(pid, proc) == process.start:
            found.append(process)
    return found


def owner_uid(proc: str, pid: int) -> int:
    """Return the user that a process runs as; -1 if it is gone. One that may not be traced shows as root's."""
    try:
        return os.stat(f"{proc}/{pid}").st_uid
    except OSError:
        return -1


def parent(proc: str, pid: int) -> int:
    """Return the process that started it, or has adopted it; 0 if it is gone, or has none."""
    try:
        fields = read_start(f"{proc}/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return 0
    return int(fields[1]) if len(fields) > 1 else 0


def uids(proc: str, pid: int) -> "set[int]":
    """Return the user ids of a process (real, effective, saved, for files), one that may not be traced included."""
    try:
        lines = read_start(f"{proc}/{pid}/status", _STATUS).split(b"\n")
    except OSError:
        return set()
    words = next((line.split()[1:] for line in lines if line.startswith(b"Uid:")), [])
    return {int(word) for word in words}


def works_in(proc: str, pid: int, directory: str) -> bool:
    """Say whether a process has its working directory there or below, although it may have been removed meanwhile."""
    try:
        place = os.readlink(f"{proc}/{pid}/cwd")
    except OSError:
        return False
    return place == f"{directory} (deleted)" or f"{place}/".startswith(f"{directory}/")


def group_ids(proc: str, pid: int) -> "set[int]":
    """Return the supplementary groups of a process: Grid Engine gives each job one of its own."""
    try:
        lines = read_start(f"{proc}/{pid}/status", _STATUS).split(b"\n")
    except OSError:
        return set()
    words = next((line.split()[1:] for line in lines if line.startswith(b"Groups:")), [])
    return {int(word) for word in words}


def cgroups(proc: str, pid: int) -> "list[tuple[str, str]]":
    """Return (controllers, path) of each hierarchy that a process is in; the controllers of version 2 are empty."""
    try:
        lines = read_start(f"{proc}/{pid}/cgroup", _STATUS).decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return []
    rows = (line.split(":", 2) for line in lines if line)
    return [(row[1], row[2]) for row in rows if len(row) == 3]  # noqa: PLR2004


def variable(proc: str, pid: int, name: str) -> str:
    """Return a variable of the environment that a process was started with; empty without it.

    The user can have forged it: it tells two jobs of one user apart, never two users.
    """
    try:
        data = read_start(f"{proc}/{pid}/environ", _ENVIRON)
    except OSError:
        return ""
    start = name.encode() + b"="
    return next((e[len(start) :].decode("utf-8", "replace") for e in data.split(b"\0") if e.startswith(start)), "")
