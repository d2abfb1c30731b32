"""The parent of a cluster's daemons: starts them, reaps what they leave, ends all of it when its own parent is gone.

Run as a program by `process.Nursery`. It is the subreaper of everything below it, so a daemon that forks twice, a job
step or a job's `setsid` leftover stays findable by descent, also where PID 1 does not reap. It reads one JSON object a
line on stdin and answers each with one on stdout:

    {"op": "start", "argv": […], "env": {…}, "cwd": "/", "log": PATH, "user": NAME|null}   → {"pid": N}
    {"op": "poll", "pid": N}                     → {"status": null | exit status, negative for a signal}
    {"op": "signal", "pid": N, "signal": N}      → {"sent": true|false}
    {"op": "descendants"}                        → {"pids": [N, …]}
    {"op": "end"}                                → {}, after which everything has ended and this process leaves

End of file on stdin means the same as `end`. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
GRACE = 0.3
"""Seconds between SIGTERM and SIGKILL for what is left at the end."""


def become_subreaper() -> None:
    """Make orphans below this process its children. Raises OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def parents() -> dict[int, int]:
    """The parent of each process that is not a zombie."""
    found: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()
                if fields[0] != "Z":
                    found[int(entry)] = int(fields[1])
    return found


def descendants(root: int) -> list[int]:
    """All live processes below `root`, nearest first."""
    tree = parents()
    found: list[int] = []
    frontier = {root}
    while frontier:
        frontier = {pid for pid, parent in tree.items() if parent in frontier}
        found.extend(sorted(frontier))
    return found


class Parent:
    """The daemons of one cluster, by pid."""

    def __init__(self) -> None:
        self._status: dict[int, int | None] = {}

    def start(self, request: dict[str, Any]) -> dict[str, Any]:
        pid = os.fork()
        if pid == 0:
            self._become(request)
        self._status[pid] = None
        return {"pid": pid}

    @staticmethod
    def _become(request: dict[str, Any]) -> None:
        """In the child: never returns."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            null = os.open("/dev/null", os.O_RDONLY)
            for source, target in ((null, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            os.closerange(3, 256)
            os.umask(0o022)
            if request["user"]:
                account = pwd.getpwnam(request["user"])
                os.initgroups(account.pw_name, account.pw_gid)
                os.setgid(account.pw_gid)
                os.setuid(account.pw_uid)
            os.chdir(request["cwd"])
            os.execve(request["argv"][0], request["argv"], request["env"])  # noqa: S606 - an argv list, no shell wanted
        except BaseException as error:  # noqa: BLE001 - a forked child must never return into its parent's loop
            os.write(2, f"cannot start {request['argv']}: {error}\n".encode())
        os._exit(127)

    def poll(self, request: dict[str, Any]) -> dict[str, Any]:
        self.reap()
        return {"status": self._status.get(request["pid"])}

    def send(self, request: dict[str, Any]) -> dict[str, Any]:
        """Signal a daemon of ours: not reaped yet, hence its pid cannot be another's."""
        self.reap()
        if self._status.get(request["pid"], 0) is not None:
            return {"sent": False}
        os.kill(request["pid"], request["signal"])
        return {"sent": True}

    def descendants(self, _request: dict[str, Any]) -> dict[str, Any]:
        self.reap()
        return {"pids": descendants(os.getpid())}

    def reap(self) -> bool:
        """Take the exit status of every child that has ended, ours or an adopted one; False if no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid in self._status:
                self._status[pid] = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)

    def end_all(self) -> None:
        """End every descendant: SIGTERM first, SIGKILL after the grace, until none is left, not even a zombie."""
        kill_at = time.monotonic() + GRACE
        asked: set[int] = set()
        while self.reap():
            left = descendants(os.getpid())
            if time.monotonic() >= kill_at:
                self._send(left, signal.SIGKILL)
            else:
                self._send([pid for pid in left if pid not in asked], signal.SIGTERM)
                asked.update(left)
            time.sleep(0.02)

    @staticmethod
    def _send(pids: list[int], number: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                try:
                    if pid in descendants(os.getpid()):  # still ours now that the handle pins it
                        signal.pidfd_send_signal(handle, number)
                finally:
                    os.close(handle)


def main() -> int:
    """Serve requests until stdin ends."""
    os.setsid()
    become_subreaper()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    parent = Parent()
    operations = {
        "start": parent.start,
        "poll": parent.poll,
        "signal": parent.send,
        "descendants": parent.descendants,
    }
    buffer = b""
    while True:
        ready, _, _ = select.select([0, wake_read], [], [])
        if wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_read, 4096)
            parent.reap()
        if 0 not in ready:
            continue
        received = os.read(0, 65536)
        if not received:
            parent.end_all()
            return 0
        buffer += received
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            request = json.loads(line)
            if request["op"] == "end":
                parent.end_all()
                os.write(1, b"{}\n")
                return 0
            os.write(1, json.dumps(operations[request["op"]](request)).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
