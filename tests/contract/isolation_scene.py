"""Real cgroups and real character devices for the tests of isolation, and a process in them to be confined."""

from __future__ import annotations

import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nodeagent.isolation.cgroup import PREFIX, directory_of
from tests.clusters.process import as_user
from tests.integration.support import unavailable
from tests.sge_files import SgeJob
from tests.support import LaidOutNode

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("cgroup-v1", "cgroup-v2")
CONTROLLER = {"cgroup-v1": "devices", "cgroup-v2": ""}
NUMBERS = ((1, 7), (1, 5), (1, 8), (10, 229))
"""What stands in for the device files of GPUs 0 to 3: full, zero, random, fuse. Anybody can open them."""
_OPEN = (
    "import errno, os, sys\n"
    "for path in sys.argv[1:]:\n"
    "    try:\n"
    "        os.close(os.open(path, os.O_RDWR))\n"
    "        print('opens')\n"
    "    except OSError as error:\n"
    "        print(errno.errorcode[error.errno])\n"
)


def make_devices(dev: Path, count: int = 4) -> None:
    """Make device files below `dev`: those of GPUs, and nvidiactl, which is everybody's."""
    dev.mkdir(mode=0o755, parents=True, exist_ok=True)
    for index in range(count):
        make_node(dev / f"nvidia{index}", *NUMBERS[index])
    make_node(dev / "nvidiactl", 1, 9)


def make_node(path: Path, major: int, minor: int) -> None:
    """Make a character device that everybody may open, as far as its mode goes."""
    path.unlink(missing_ok=True)
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(major, minor))
    path.chmod(0o666)


def opening(dev: Path, *gpus: int) -> str:
    """Return a command for sh that prints what came of opening the GPUs' devices, a word a line."""
    return shlex.join([sys.executable, "-ISc", _OPEN, *(f"{dev}/nvidia{gpu}" for gpu in gpus)])


class Cell:
    """A cgroup of a test's own, in the hierarchy that a method works in."""

    def __init__(self, method: str) -> None:
        if os.geteuid() != 0:
            unavailable("makes cgroups: root only")
        above = directory_of("/proc", os.getpid(), CONTROLLER[method])
        if not above:
            unavailable(f"{method} is not mounted here")
        self.path = Path(above, f"gna-test-{os.getpid()}-{time.monotonic_ns()}")
        self.path.mkdir()

    def made(self) -> list[str]:
        """Return the cgroups of ours in it."""
        return sorted(child.name for child in self.path.iterdir() if child.name.startswith(PREFIX))

    def remove(self) -> None:
        """Remove it with everything in it; processes first."""
        places = sorted((p for p in (self.path, *self.path.rglob("*")) if p.is_dir()), key=lambda p: -len(p.parts))
        for place in places:
            deadline = time.monotonic() + 5
            while True:
                for pid in (place / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
                try:
                    place.rmdir()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)


class Shepherd:
    """A shell in a cell: it starts whatever it is told to, as Grid Engine's shepherd starts prolog, job and epilog."""

    def __init__(self, cell: Cell) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(["/bin/sh"], stdin=pipe, stdout=pipe, text=True, cwd="/")
        self.pid = self.process.pid
        (cell.path / "cgroup.procs").write_text(str(self.pid))

    def run(self, command: str, env: Mapping[str, str] | None = None) -> tuple[int, list[str]]:
        """Run a command to its end; return its status and what it printed, in words."""
        assert self.process.stdin is not None and self.process.stdout is not None
        words = shlex.join(["env", "-i", *(f"{k}={v}" for k, v in env.items())]) + " " if env is not None else ""
        self.process.stdin.write(f"{words}{command}\necho ended $?\n")
        self.process.stdin.flush()
        said: list[str] = []
        for line in self.process.stdout:
            if line.startswith("ended "):
                return int(line.split()[1]), said
            said += line.split()
        raise RuntimeError(f"the shell ended: {self.process.wait()}")

    def end(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=10)


class Scene:
    """A node with four GPUs whose jobs are confined by one method, and a job of Grid Engine's on it."""

    def __init__(self, directory: Path, method: str, setting: str = "", gpus: int = 1) -> None:
        directory.chmod(0o755)
        self.method = method
        self.dev = directory / "dev"
        make_devices(self.dev)
        roots = f"roots: {{dev: {self.dev}, proc: {directory}/proc}}\n"
        (directory / "proc/sys/kernel/random").mkdir(parents=True)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        (directory / "proc/sys/kernel/random/boot_id").write_text(boot)
        (directory / "proc/driver/nvidia").mkdir(parents=True)
        self.params = directory / "proc/driver/nvidia/params"
        self.params.write_text("ModifyDeviceFiles: 0\nDeviceFileMode: 438\n")
        settings = f"{roots}hooks: {{wait_for_units: 0}}\nisolation: {setting or method}\n"
        self.node = LaidOutNode(directory, "sge", 4, settings)
        self.job = SgeJob(directory / "spool", gpus=gpus)
        self.cell = Cell(method if method in VERSIONS else VERSIONS[0])
        self.shepherd = Shepherd(self.cell)
        self.shepherds()

    def shepherds(self, pid: int | None = None) -> None:
        """Write whose job it is, as the exec daemon does."""
        (self.job.directory / "pid").write_text(f"{pid or self.shepherd.pid}\n")

    def hook(self, stub: str, job: SgeJob | None = None) -> int:
        """Let the shepherd run a hook; return its status."""
        environ = (job or self.job).environ
        return self.shepherd.run(shlex.join([str(ROOT / stub), "--config", str(self.node.config)]), environ)[0]

    def opened(self, *gpus: int, user: str = "root", prefix: str = "") -> list[str]:
        """Return what a job's process gets that opens the GPUs' devices."""
        command = f"{prefix} {opening(self.dev, *gpus)}"
        if user != "root":
            command = shlex.join(as_user(user, ["/bin/sh", "-c", command]))
        return self.shepherd.run(command)[1]

    def records(self) -> list[str]:
        """Return what is recorded of confinements, whatever its name."""
        place = self.node.state_dir / "isolation"
        return sorted(os.listdir(place)) if place.exists() else []

    def restart(self) -> None:
        """End the shepherd and take another."""
        self.shepherd.end()
        self.shepherd = Shepherd(self.cell)
        self.shepherds()

    def close(self) -> None:
        """Leave nothing."""
        self.shepherd.end()
        self.cell.remove()


@contextmanager
def scene(directory: Path, method: str, setting: str = "", gpus: int = 1) -> Iterator[Scene]:
    """Lay a scene out for as long as the block lasts."""
    found = Scene(directory, method, setting, gpus)
    try:
        yield found
    finally:
        found.close()
