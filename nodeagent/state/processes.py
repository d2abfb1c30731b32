"""Processes as /proc shows them: who has a GPU's device file open, which job a process is of. Lean.

Every reader takes the root of the tree (`/proc`, or a test's), and answers "nothing" for a process that is gone.
"""

import os
import sys
import time

from nodeagent.state.boot import read_start, start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_STATUS = 8192
_ENVIRON = 262144
_LOCAL = frozenset((b"devtmpfs", b"tmpfs", b"ramfs", b"ext4", b"xfs", b"btrfs"))
_O_PATH = 0o10000000  # <asm-generic/fcntl.h>: the same on x86-64, arm64 and ppc64
_AT_FDCWD, _DONT_SYNC, _STATX_TYPE = -100, 0x4000, 0x1


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


def open_devices(proc: str, pid: int, deadline: "float | None" = None) -> "set[int]":
    """Return the numbers of the NVIDIA device files that a process has open, as far as they are found by `deadline`.

    A user may have half a million files open; `deadline` is in monotonic seconds. Files are known by their names first;
    a device file of another name is root's to make. One that is open as a path only (O_PATH) uses no device.
    """
    home = f"{proc}/{pid}"
    found: set[int] = set()
    try:
        names = os.listdir(f"{home}/fd")
    except OSError:  # it ended, or is a kernel thread
        return found
    for name in names:
        if deadline is not None and time.monotonic() > deadline:
            break
        try:
            if os.readlink(f"{home}/fd/{name}").rpartition("/")[2].startswith("nvidia"):
                found.add(_number_of_open(home, name))
        except OSError:
            continue  # closed meanwhile
    found.discard(0)
    return found


def _number_of_open(home: str, name: str) -> int:
    """Return the device number of an open file, 0 for none, without waiting for whoever serves its file system.

    The name is the user's to choose, and so is the server: a FUSE program of theirs would keep root waiting. So only
    what lies on a local file system of this very mount namespace is asked; of the rest the kernel's copy must do.
    """
    try:
        lines = read_start(f"{home}/fdinfo/{name}", _STATUS).split(b"\n")
    except FileNotFoundError:
        lines = []
    info = dict(line.split(b":", 1) for line in lines if b":" in line)
    if int(info.get(b"flags", b"0"), 8) & _O_PATH:
        return 0
    path = f"{home}/fd/{name}"
    if info.get(b"mnt_id", b"").strip() in _local_mounts():
        return os.stat(path).st_rdev
    return _cached_number(path)


def _local_mounts() -> "set[bytes]":
    """Return the ids of the mounts that no server is behind (proc(5), mountinfo)."""
    with open("/proc/self/mountinfo", "rb") as file:
        rows = (line.partition(b" - ") for line in file)
        return {row[0].split(b" ", 1)[0] for row in rows if row[2].split(b" ", 1)[0] in _LOCAL}


def _cached_number(path: str) -> int:
    """Return a file's device number as the kernel has it, asking no server: statx(2) with AT_STATX_DONT_SYNC."""
    import ctypes  # noqa: PLC0415  not free, and needed only where a job sees another /dev than we do

    found = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statx(_AT_FDCWD, path.encode(), _DONT_SYNC, _STATX_TYPE, found):
        raise OSError(ctypes.get_errno(), path)
    major, minor = (int.from_bytes(found.raw[at : at + 4], sys.byteorder) for at in (128, 132))  # struct statx
    return os.makedev(major, minor)


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
    """Return the user that a process runs as (effective uid, traceable or not); -1 if it is gone."""
    try:
        return os.stat(f"{proc}/{pid}").st_uid
    except OSError:
        return -1


def name_of(proc: str, pid: int) -> str:
    """Return the name of a process's program (15 characters of it); empty if it is gone."""
    return _name_and_parent(proc, pid)[0]


def parent(proc: str, pid: int) -> int:
    """Return the process that started it, or has adopted it; 0 if it is gone, or has none."""
    return _name_and_parent(proc, pid)[1]


def ancestors(proc: str, pid: int) -> "Iterator[tuple[int, str]]":
    """Yield the processes above one, nearest first, each with the name of its program (15 characters of it)."""
    above = _name_and_parent(proc, pid)[1]
    while above:
        pid = above
        name, above = _name_and_parent(proc, pid)
        yield pid, name


def _name_and_parent(proc: str, pid: int) -> "tuple[str, int]":
    try:
        head, _, rest = read_start(f"{proc}/{pid}/stat").rpartition(b")")
    except OSError:
        return "", 0
    fields = rest.split()
    return head.partition(b"(")[2].decode("utf-8", "replace"), int(fields[1]) if len(fields) > 1 else 0


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


def is_waiting(proc: str, pid: int) -> bool:
    """Say whether a thread of a process is in state D: in the midst of a call that nothing interrupts."""
    try:
        for thread in os.listdir(f"{proc}/{pid}/task"):
            if read_start(f"{proc}/{pid}/task/{thread}/stat").rpartition(b")")[2].split()[:1] == [b"D"]:
                return True
    except OSError:
        pass  # it ended
    return False


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
