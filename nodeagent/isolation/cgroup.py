"""What both versions of cgroups have in common: a child of the process's own, entered, left and removed. Lean."""

import errno
import os

from nodeagent.errors import NotIsolated
from nodeagent.isolation.method import Method
from nodeagent.state.processes import cgroups, parent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from nodeagent.isolation.devices import Device
    from nodeagent.isolation.record import Confinement

PREFIX = "gpu-nodeagent-"
_GENERATIONS = 16


class CgroupMethod(Method):
    """A method by cgroups; `controller` is version 1's, empty for version 2."""

    __slots__ = ("proc",)
    controller = ""

    def __init__(self, proc: str = "/proc") -> None:
        self.proc = proc

    def why_not(self, pid: int) -> str:
        """See Method."""
        where = directory_of(self.proc, pid, self.controller)
        what = "the devices controller of cgroup v1" if self.controller else "cgroup2"
        if not where:
            return f"{what} is not mounted here"
        if not os.access(where, os.W_OK):
            return f"{where} cannot be changed{'' if os.geteuid() == 0 else ' but by root'}"
        return ""

    def plan(self, grant: "Confinement", pid: int, own: "Sequence[Device]") -> None:
        """See Method."""
        grant.origin = directory_of(self.proc, pid, self.controller)
        grant.place = f"{grant.origin.rstrip('/')}/{PREFIX}{grant.grant}"

    def close(self, grant: "Confinement", others: "Sequence[Device]", spared: "Sequence[Device]") -> "list[Device]":
        """See Method."""
        os.mkdir(grant.place, 0o755)
        self.restrict(grant.place, others, spared)
        return list(others)

    def restrict(self, place: str, others: "Sequence[Device]", spared: "Sequence[Device]") -> None:
        """Close devices to whoever is in the cgroup."""
        raise NotImplementedError

    def become(self, grant: "Confinement") -> None:
        """See Method."""
        write(f"{grant.place}/cgroup.procs", str(os.getpid()))

    def enter(self, grant: "Confinement", pid: int) -> None:
        """See Method."""
        write(f"{grant.place}/cgroup.procs", str(pid))
        if directory_of(self.proc, pid, self.controller) != grant.place:
            raise NotIsolated(self.name, f"process {pid} did not stay in {grant.place}")

    def leave(self, grant: "Confinement") -> None:
        """See Method."""
        try:
            inside = {int(pid) for pid in read(f"{grant.place}/cgroup.procs").split()}
        except FileNotFoundError:
            return
        pid = os.getpid()
        for _ in range(_GENERATIONS):
            if pid in inside:
                write(f"{grant.origin}/cgroup.procs", str(pid))
            pid = parent(self.proc, pid)

    def undo(self, grant: "Confinement", taken: "Collection[str]") -> bool:
        """See Method: a cgroup with a process in it stays, and keeps that process confined."""
        if not grant.place.rpartition("/")[2].startswith(PREFIX):
            return True
        try:
            os.rmdir(grant.place)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return False
            raise
        return True


def write(path: str, text: str) -> None:
    """Write to one of the kernel's files, which takes it as a whole or not at all."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def read(path: str) -> str:
    """Return all of one of the kernel's files, which come in pieces."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks: list[bytes] = []
        while True:
            chunk = os.read(fd, 65536)
            if not chunk:
                return b"".join(chunks).decode("utf-8", "surrogateescape")
            chunks.append(chunk)
    finally:
        os.close(fd)


def directory_of(proc: str, pid: int, controller: str) -> str:
    """Return the directory of the cgroup that a process is in; empty where that hierarchy cannot be reached from here.

    `controller` is version 1's, empty for version 2.
    """
    path = next((path for names, path in cgroups(proc, pid) if controller in names.split(",")), None)
    if path is None:
        return ""
    for line in read(f"{proc}/self/mountinfo").split(
        "\n"
    ):  # proc(5): fields 4 and 5, then after " - " type and options
        head, dash, tail = line.partition(" - ")
        if not dash:
            continue
        root, point = head.split(" ")[3:5]
        kind, _, rest = tail.partition(" ")
        options = rest.rpartition(" ")[2].split(",")
        if kind == ("cgroup" if controller else "cgroup2") and (not controller or controller in options):
            if root == "/":
                return (point + path).rstrip("/")
            if path == root or path.startswith(f"{root}/"):
                return point + path[len(root) :]
    return ""
