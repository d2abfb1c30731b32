"""A booted systemd in a tree, in namespaces and a cgroup of its own: what a service manager does, tried for real.

Nothing that happens inside reaches the tree: it lies under an overlay that goes with the machine. The machine has no
network but its own loopback.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
BOOT_SECONDS = 60
STOP_SECONDS = 20
COMMAND_SECONDS = 60
_NUMBERS = itertools.count(1)

# $1: files named cgroup.procs, up to a `--`; then the command. The machine ends with whoever started it.
_ENTER = """
while [ "$1" != -- ]; do echo $$ > "$1"; shift; done
shift
exec setpriv --pdeathsig TERM "$@"
"""


class NotBooted(Exception):
    """The machine did not come up; carries what its console said."""


class Machine:
    """A machine that runs; see `boot`."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        """The process that is the machine's init."""

    def run(
        self, *argv: str, env: Mapping[str, str] | None = None, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, with nothing but PATH and `env` in its environment."""
        inside = ["env", "-i", f"PATH={PATH}", "LC_ALL=C", *(f"{name}={value}" for name, value in (env or {}).items())]
        return subprocess.run(
            [*self._enter(), *inside, *argv],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def ok(self, *argv: str, env: Mapping[str, str] | None = None, input: str | None = None) -> str:
        """Run a command that is to succeed; returns what it printed."""
        done = self.run(*argv, env=env, input=input)
        assert done.returncode == 0, f"{argv}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Begin a command inside; whoever calls ends it."""
        inside = [*self._enter(), "env", "-i", f"PATH={PATH}", *argv]
        return subprocess.Popen(inside, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    def write(self, path: str, text: str) -> None:
        """Write a file, root's and writable by nobody else."""
        self.ok("install", "-D", "-m", "644", "/dev/stdin", path, input=text)

    def show(self, unit: str, *names: str) -> list[str]:
        """Return properties of a unit, in the order asked for."""
        said = self.ok("systemctl", "show", unit, *(f"--property={name}" for name in names))
        pairs = dict(line.split("=", 1) for line in said.splitlines())
        return [pairs[name] for name in names]

    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self.leader), "--all", "--wd=/", "--"]


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until the condition holds; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


@contextmanager
def boot(tree: Path, log: Path, binds: Mapping[Path, str]) -> Iterator[Machine]:
    """Boot the tree with these paths of ours shown inside, read-only; afterwards nothing of the machine is left."""
    name = f"gna-{os.getpid()}-{next(_NUMBERS)}"
    cgroups = [home / name for home in _own_cgroups()]
    for cgroup in cgroups:
        cgroup.mkdir()
    argv = ["systemd-nspawn", "--quiet", "--boot", f"--directory={tree}", f"--machine={name}", "--volatile=overlay"]
    argv += [
        "--keep-unit",
        "--register=no",
        "--private-network",
        "--capability=CAP_SYSLOG",
        "--console=read-only",
        "--system-call-filter=bpf",
    ]
    argv += [f"--bind-ro={outside}:{inside}" for outside, inside in binds.items()]
    enter = ["sh", "-c", _ENTER, "sh", *(str(cgroup / "cgroup.procs") for cgroup in cgroups), "--"]
    environment = {"PATH": PATH, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
    with log.open("wb") as console:
        nspawn = subprocess.Popen(
            [*enter, *argv], stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, env=environment
        )
    leader = 0
    try:
        leader = _leader(nspawn, log)
        machine = Machine(leader)
        _wait_for_boot(machine, nspawn, log)
        yield machine
    finally:
        _power_off(nspawn, leader)
        for cgroup in cgroups:
            _remove_cgroup(cgroup)


def left_over(tree: Path) -> Sequence[str]:
    """Return what is still there of machines of this process: mounts of the tree, cgroups, nspawn's own files."""
    name = f"gna-{os.getpid()}-"
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(tree) in line]
    places = [*_own_cgroups(), Path("/run/systemd/nspawn/propagate"), Path("/run/systemd/nspawn/unix-export")]
    return [*mounts, *(str(path) for place in places for path in place.glob(f"{name}*"))]


def _own_cgroups() -> list[Path]:
    """Where this process is in the hierarchies that systemd uses: the unified one and, where there is one, its own."""
    mounted: dict[str, Path] = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options = line.split()[:4]
        if kind == "cgroup2":
            mounted[""] = Path(place)
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            mounted["name=systemd"] = Path(place)
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in mounted:
            found.append(mounted[controllers] / path.lstrip("/"))
    return found


def _leader(nspawn: subprocess.Popen[bytes], log: Path) -> int:
    """Return the machine's init: nspawn's child that is the first process of a namespace of its own."""
    end = time.monotonic() + BOOT_SECONDS
    ours = os.readlink("/proc/self/ns/pid")
    while nspawn.poll() is None and time.monotonic() < end:
        for child in _children(nspawn.pid):
            with suppress(OSError):
                if (
                    os.readlink(f"/proc/{child}/ns/pid") != ours
                    and Path(f"/proc/{child}/comm").read_text() == "systemd\n"
                ):
                    return child
        time.sleep(0.02)
    raise NotBooted(log.read_text(errors="replace")[-2000:])


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _wait_for_boot(machine: Machine, nspawn: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + BOOT_SECONDS
    while nspawn.poll() is None and time.monotonic() < end:
        if machine.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"):
            return
        time.sleep(0.05)
    raise NotBooted(log.read_text(errors="replace")[-2000:])


def _power_off(nspawn: subprocess.Popen[bytes], leader: int) -> None:
    if leader and nspawn.poll() is None:
        os.kill(leader, signal.SIGRTMIN + 14)  # systemd's own signal for an immediate power-off
    try:
        nspawn.wait(STOP_SECONDS if leader else 0.1)
    except subprocess.TimeoutExpired:
        nspawn.terminate()  # with it goes the machine
        try:
            nspawn.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            nspawn.kill()
            nspawn.wait()


def _remove_cgroup(cgroup: Path) -> None:
    below = sorted((Path(path) for path, _, _ in os.walk(cgroup)), key=lambda path: len(path.parts), reverse=True)
    end = time.monotonic() + STOP_SECONDS
    for path in below:
        while path.exists():
            try:
                path.rmdir()
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
