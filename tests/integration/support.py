"""What the integration tests share: the component rule, an installed tree, jobs that wait to be told to end."""

from __future__ import annotations

import compileall
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from nodeagent.state.boot import start_time
from tests import provision
from tests.simulated_node import ROOT, SimulatedNode


def unavailable(why: str) -> None:
    """Skip for want of something; under CI=true that is a failure."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)


def require(component: str) -> None:
    """Skip where a component is missing; under CI=true its absence is a failure."""
    reason = provision.missing(component)
    if reason:
        unavailable(reason)


def install_tree(directory: Path) -> Path:
    """Copy library and hooks to where every user can read them, byte-compiled and linked as an RPM leaves them."""
    tree = directory / "libexec"
    for name in ("nodeagent", "prolog", "epilog"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(str(tree / "nodeagent"), quiet=2)
    subprocess.run(["/usr/bin/python3", "-IS", str(tree / "nodeagent/link.py")], check=True, timeout=30)
    return tree


def executable(path: Path, body: str) -> Path:
    """Write an sh script."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


_DEVICES = (3, 5, 7, 8)
"""Minor numbers of /dev/null, zero, full and random, whose major is 1: devices that open."""
_HOLD = "import os,signal,sys,time; signal.signal(15, signal.SIG_IGN); os.open(sys.argv[1], os.O_RDWR); time.sleep(600)"


class Leftovers:
    """A node on which jobs can hold a GPU's device and stay: devices that open, and processes that hooks see.

    The node's /proc is a test's tree, so processes are linked into it one by one.
    """

    def __init__(self, node: SimulatedNode) -> None:
        self._proc = node.roots["proc"]
        self.device = f"{node.roots['dev']}/nvidia"
        for gpu, minor in enumerate(_DEVICES):
            path = f"{self.device}{gpu}"
            os.unlink(path)
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, minor))
            os.chmod(path, 0o666)  # noqa: S103  as the driver makes them

    def script(self, gpu: int) -> str:
        """Return the part of a job's script that leaves a process on the GPU: of its own session, deaf to TERM."""
        hold = f"/usr/bin/python3 -IS -c '{_HOLD}' {self.device}{gpu}"
        return f"setsid {hold} </dev/null >/dev/null 2>&1 &\necho left=$!\n"

    def seen(self, pid: int) -> None:
        """Have hooks see that process."""
        os.symlink(f"/proc/{pid}", self._proc / str(pid))

    @staticmethod
    def lives(pid: int) -> bool:
        """Say whether the process is there, and no zombie."""
        return bool(start_time(pid))


def variables(text: str) -> dict[str, str]:
    """Return the output of `env` as a mapping."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


class Gates:
    """Jobs that show their environment and stay until they are told to end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._number = 0

    def new(self) -> tuple[Path, str]:
        """Return a file, and a job's script that stays until that file exists."""
        self._number += 1
        gate = self._directory / f"gate{self._number}"
        return gate, f"env\necho begun=yes\nuntil [ -e {gate} ]; do sleep 0.1; done\n"

    def open_all(self) -> None:
        """Let every job end."""
        for number in range(1, self._number + 1):
            (self._directory / f"gate{number}").touch()
