"""The parent's side of one probe process: start it, talk to it, end it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

READ_BYTES = 65536
KILL_WAIT = 0.5
"""Seconds that a killed process is given to be gone; one that is not sits in the driver, in state D."""
BOOT = "import sys; sys.path += sys.argv[4:]; from nodeagent.gpu.worker import main; main(sys.argv[1:4])"
"""Run with `-I -S`: nothing of the environment's and no `site`, which halves start and memory."""

Kill = Callable[[int], None]


class Gone(Exception):
    """The probe process has ended; `status` as subprocess gives it: minus the signal, or the exit status."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(status)


def kill(pid: int) -> None:
    """Send SIGKILL to a child that has not been waited for."""
    os.kill(pid, signal.SIGKILL)


def library_directories() -> list[str]:
    """Return the directories in which the worker finds this package and pynvml; pynvml is not imported for it."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    binding = importlib.util.find_spec("pynvml")
    found = [package]
    if binding is not None and binding.origin is not None:
        found.append(os.path.dirname(binding.origin))
    return found


class Worker:
    """A probe process that runs. Raises OSError if it cannot be started.

    `env` is its whole environment (None: ours), from which the loader takes LD_LIBRARY_PATH. It has its own session,
    and of our descriptors only stderr. It dies with the thread that creates it: that is to be one that lives on.
    """

    def __init__(self, proc: str, sys_root: str, env: Mapping[str, str] | None) -> None:
        argv = [sys.executable, "-I", "-S", "-B", "-c", BOOT, str(os.getpid()), proc, sys_root, *library_directories()]
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=None if env is None else dict(env),
            cwd="/",
            bufsize=0,
            start_new_session=True,
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise OSError("no pipes to the probe process")
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        self._rest = b""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def fileno(self) -> int:
        """Return the descriptor on which its messages come."""
        return self._stdout.fileno()

    def request(self, **request: Any) -> None:
        """Send a request; raises Gone."""
        line = json.dumps(request, separators=(",", ":")).encode() + b"\n"
        try:
            os.write(self._stdin.fileno(), line)
        except (BrokenPipeError, BlockingIOError):  # blocked: it has not read one request since long ago
            raise Gone(self._status()) from None

    def messages(self) -> list[dict[str, Any]]:
        """Return the messages that have come, without waiting; raises Gone when all is read and it has ended."""
        chunks = []
        ended = False
        while True:
            try:
                chunk = os.read(self._stdout.fileno(), READ_BYTES)
            except BlockingIOError:
                break
            if not chunk:
                ended = True
                break
            chunks.append(chunk)
        lines = (self._rest + b"".join(chunks)).split(b"\n")
        self._rest = lines.pop()
        found = [message for message in map(_message, lines) if message is not None]
        if ended and not found:
            raise Gone(self._status())
        return found

    def wait_readable(self, timeout: float, also: int = -1) -> None:
        """Wait until a message, or something on the descriptor `also`, can be read; at most `timeout` seconds."""
        poll = select.poll()
        poll.register(self._stdout.fileno(), select.POLLIN)
        if also >= 0:
            poll.register(also, select.POLLIN)
        poll.poll(max(0.0, timeout) * 1000)

    def end(self, kill: Kill = kill) -> bool:
        """Kill it and wait at most KILL_WAIT; returns whether it is gone. Its pipes are closed either way."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                kill(self.pid)
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        return self._wait(KILL_WAIT)

    def is_gone(self) -> bool:
        """Return whether it has ended, and take note of it if so."""
        return self._process.poll() is not None

    def _wait(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self._process.poll() is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.002)
        return True

    def _status(self) -> int:
        """How it ended; one that closed its pipe and lives is killed."""
        if not self._wait(KILL_WAIT):
            kill(self.pid)
            self._wait(KILL_WAIT)
        status = self._process.poll()
        return -signal.SIGKILL if status is None else status


def _message(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(str(line, "utf-8"))
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
