"""Shared plumbing of the clusters: daemons with a log, conditions with a deadline, commands as an ordinary user."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
POLL = 0.03
"""Seconds between two looks at a condition."""


class ClusterError(Exception):
    """A cluster could not do what a test asked; the text carries the tails of its logs."""


class CommandFailed(ClusterError):
    """A command ended with another status than 0."""

    def __init__(self, argv: Sequence[str], result: subprocess.CompletedProcess[str]) -> None:
        self.argv = list(argv)
        self.result = result
        output = (result.stdout + result.stderr).strip()
        super().__init__(f"{' '.join(argv)}: exit {result.returncode}: {output}")


class DidNotHappen(ClusterError, TimeoutError):
    """A condition did not become true before its deadline."""


def wait_for(condition: Callable[[], T], timeout: float, what: str, detail: Callable[[], str] | None = None) -> T:
    """Look until `condition()` is true and return its value; raises DidNotHappen after `timeout` seconds.

    `what` completes the sentence "waited N s for …"; `detail()` is asked only on failure.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            more = f"\n{detail()}" if detail else ""
            raise DidNotHappen(f"waited {timeout:g} s for {what}; last seen: {value!r}{more}")
        time.sleep(POLL)


def free_ports(count: int) -> list[int]:
    """Ports free on loopback at this moment, all different."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(int(probe.getsockname()[1]))
        return ports


def listens(port: int) -> bool:
    """Whether something accepts connections on that port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def program(name: str, *directories: str) -> str:
    """The absolute path of a program of the system; raises ClusterError where there is none."""
    found = shutil.which(name, path=":".join((*directories, SYSTEM_PATH)))
    if found is None:
        raise ClusterError(f"{name} is not installed")
    return found


def as_user(user: str, argv: Sequence[str]) -> list[str]:
    """`argv` run with the ids and groups of `user`; unchanged for the user that runs this."""
    account = pwd.getpwnam(user)
    if account.pw_uid == os.geteuid():
        return list(argv)
    ids = ["--reuid", str(account.pw_uid), "--regid", str(account.pw_gid), "--init-groups"]
    return [program("setpriv"), *ids, "--", *argv]


def clean_environment(user: str, **variables: str) -> dict[str, str]:
    """What a fresh login of `user` has, and `variables`; nothing of the tests' own environment."""
    account = pwd.getpwnam(user)
    base = {"PATH": SYSTEM_PATH, "HOME": account.pw_dir, "USER": user, "LOGNAME": user, "SHELL": "/bin/sh"}
    return {**base, "LANG": "C.UTF-8", **variables}


def tail(path: Path, lines: int = 12) -> str:
    """The last lines of a log under its name; empty for a log that is not there."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    return f"--- {path.name}\n" + "\n".join(text.splitlines()[-lines:])


@contextlib.contextmanager
def open_directory(prefix: str = "cluster-") -> Iterator[Path]:
    """A new directory that ordinary users can pass through (pytest's own are root's alone), removed at the end."""
    path = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def require_open(directory: Path) -> None:
    """Raise ValueError unless every user can pass through `directory` and its parents."""
    for path in (directory, *directory.parents):
        if not path.stat().st_mode & 0o001:
            raise ValueError(f"{path} is closed to ordinary users, whose jobs run below it: use open_directory()")


class Daemon:
    """One process started through a nursery."""

    def __init__(self, nursery: Nursery, name: str, pid: int, log: Path) -> None:
        self.name = name
        self.pid = pid
        self.log = log
        self._nursery = nursery

    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        status = self._nursery.ask(op="poll", pid=self.pid)["status"]
        return None if status is None else int(str(status))

    def send(self, number: int) -> bool:
        """Send a signal; False if it has ended already."""
        return bool(self._nursery.ask(op="signal", pid=self.pid, signal=int(number))["sent"])

    def end(self, timeout: float, number: int = signal.SIGTERM) -> None:
        """Signal it and wait for its end; after `timeout` seconds SIGKILL."""
        self.send(number)
        try:
            wait_for(lambda: self.status() is not None, timeout, f"the end of {self.name}")
        except DidNotHappen:
            self.send(signal.SIGKILL)
            wait_for(lambda: self.status() is not None, 5, f"the end of {self.name} after SIGKILL")


class Nursery:
    """Starts daemons below one parent process, which reaps what they leave and ends everything at `stop`.

    The parent also ends everything when this process is killed: its stdin is then at its end.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._lock = threading.Lock()
        self._parent: subprocess.Popen[str] | None = None

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], user: str | None = None, cwd: Path | str = "/"
    ) -> Daemon:
        """Start `argv` (absolute path first) with exactly `env`, its output appended to `NAME.out` among the logs."""
        if self._parent is None:
            script = str(Path(__file__).with_name("nursery.py"))
            self._parent = subprocess.Popen(
                [sys.executable, "-I", "-S", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        log = self._logs / f"{name}.out"
        request = {"argv": list(argv), "env": dict(env), "cwd": str(cwd), "log": str(log), "user": user}
        return Daemon(self, name, int(str(self.ask(op="start", **request)["pid"])), log)

    def ask(self, **request: object) -> dict[str, object]:
        """One request to the parent (see `nursery.py`) and its answer."""
        parent = self._parent
        if parent is None or parent.stdin is None or parent.stdout is None:
            raise ClusterError("the cluster is stopped")
        with self._lock:
            parent.stdin.write(json.dumps(request) + "\n")
            parent.stdin.flush()
            answer = parent.stdout.readline()
        if not answer:
            raise ClusterError(f"the parent of the daemons ended with {parent.wait()}")
        return dict(json.loads(answer))

    def pids(self) -> list[int]:
        """Every live process of the cluster, daemons, steps and jobs' leftovers, without the parent itself."""
        if self._parent is None:
            return []
        found = self.ask(op="descendants")["pids"]
        return [int(pid) for pid in found] if isinstance(found, list) else []

    def stop(self) -> None:
        """End everything below the parent, and the parent. Harmless when repeated."""
        parent = self._parent
        if parent is None or parent.stdin is None or parent.stdout is None:
            return
        try:
            if parent.poll() is None:
                self.ask(op="end")
            parent.wait(timeout=15)
        finally:
            self._parent = None
            parent.stdin.close()
            parent.stdout.close()
