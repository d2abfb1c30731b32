"""One run of a site's program: started as its user, watched, ended with all that it started. Blocks; for a thread."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import select
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from nodeagent.errors import UntrustedFile
from nodeagent.gpu.facts import BROKEN, ENDED, HUNG
from nodeagent.scheduler.command import BASE_ENVIRONMENT
from nodeagent.state.files import check_parents
from nodeagent.state.processes import all_pids

MAX_OUTPUT = 64 << 10
"""Bytes of output that are kept; the rest is read and dropped, so that the program does not stop at a full pipe."""
MARK = "GPU_NODEAGENT_CHECK"
"""In the environment of a program and of all that it starts, in whatever session: so they are found again."""
_NAP = 0.1
_KILL_WAIT = 1.0
_MOST_PASSES = 50
_LONGEST = 300


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `kind` (ENDED, HUNG, BROKEN), exit status as subprocess has it, output, and why it is BROKEN."""

    kind: str
    status: int | None = None
    output: str = ""
    why: str = ""

    @property
    def is_fine(self) -> bool:
        """Whether it ended by itself with exit status 0."""
        return self.kind == ENDED and self.status == 0

    def told(self, timeout: float) -> str:
        """Return how it ended, on one line, for a program that was given so many seconds."""
        if self.kind == BROKEN:
            return self.why
        said = "".join(c for c in " ".join(self.output.split()) if c.isprintable())[:_LONGEST]
        how = f"did not end within {timeout:g} s and was ended" if self.kind == HUNG else f"exit status {self.status}"
        return f"{how}: {said}" if said else how


class Program(Protocol):
    """What is run: an argument list, whom as (empty: our own user), and for how many seconds at most."""

    @property
    def command(self) -> tuple[str, ...]:
        """The program's absolute path and its arguments."""

    @property
    def user(self) -> str:
        """A user's name."""

    @property
    def timeout(self) -> float:
        """Seconds."""


class Run:
    """A run in progress. `begin` starts it in a thread; `outcome` is there when it is over, None if it was stopped.

    The program reads `text` on standard input.
    """

    def __init__(self, program: Program, text: str = "") -> None:
        self.program = program
        self._text = text
        self.outcome: Outcome | None = None
        self.abandoned: subprocess.Popen[bytes] | None = None
        """The process, if even SIGKILL did not end it (state D)."""
        self.stopped = False
        self._token = secrets.token_hex(8)
        self._stopped_read, self._stopped_write = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, daemon=True, name="site-program")

    def begin(self) -> None:
        """Start it."""
        self._thread.start()

    def is_over(self) -> bool:
        """Say whether it has ended, or was let go of."""
        return not self._thread.is_alive()

    def stop(self, wait: float = 0.0) -> None:
        """Have it ended, with no outcome; waits so many seconds for that."""
        if not self.stopped:
            self.stopped = True
            os.write(self._stopped_write, b"x")
        self._thread.join(wait)

    def close(self) -> None:
        """Give back its descriptors, when it is over."""
        for fd in (self._stopped_read, self._stopped_write):
            os.close(fd)

    # ---- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            check_executable(self.program.command[0])
            process = self._start()
        except (OSError, UntrustedFile, KeyError, subprocess.SubprocessError) as error:
            why = f"no user {self.program.user}" if isinstance(error, KeyError) else str(error)
            self.outcome = Outcome(BROKEN, why=f"cannot be started: {why}")
            return
        kind, output = HUNG, bytearray()
        try:
            kind = self._watch(process, output)
        finally:
            self._end(process)
        if kind:
            status = process.returncode if kind == ENDED else None
            self.outcome = Outcome(kind, status, output.decode("utf-8", "replace"))

    def _start(self) -> subprocess.Popen[bytes]:
        user = pwd.getpwnam(self.program.user) if self.program.user else pwd.getpwuid(os.geteuid())
        environment = {**BASE_ENVIRONMENT, "USER": user.pw_name, "LOGNAME": user.pw_name, MARK: self._token}
        other = user.pw_uid != os.geteuid()
        groups = os.getgrouplist(user.pw_name, user.pw_gid) if other else None
        with _holding(self._text) as stdin:
            return subprocess.Popen(
                self.program.command,
                env={**environment, "HOME": user.pw_dir},
                cwd="/",
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,
                user=user.pw_uid if other else None,
                group=user.pw_gid if other else None,
                extra_groups=groups,
            )

    def _watch(self, process: subprocess.Popen[bytes], output: bytearray) -> str:
        """Take its output until it has ENDED, its time is over (HUNG), or it is stopped (nothing)."""
        deadline = time.monotonic() + self.program.timeout
        pipe = -1 if process.stdout is None else process.stdout.fileno()
        os.set_blocking(pipe, False)
        ended = _pidfd(process.pid)
        poll = select.poll()
        for fd in (pipe, self._stopped_read, ended):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        try:
            while not _has_ended(process.pid):
                left = deadline - time.monotonic()
                if left <= 0:
                    return HUNG
                ready = {fd for fd, _ in poll.poll(1000 * (left if ended >= 0 else min(left, _NAP)))}
                if self._stopped_read in ready:
                    return ""
                if pipe in ready and not _take(pipe, output):
                    poll.unregister(pipe)  # it closed its output and goes on
            _take(pipe, output)  # what is still in the pipe; a child that keeps it open is not waited for
            return ENDED
        finally:
            if ended >= 0:
                os.close(ended)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill what is left of it: its group at once, then whoever left the group and still bears the mark.

        It has not been waited for yet, so its number, which is its group's, is nobody else's.
        """
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for _ in range(_MOST_PASSES):
            if not any([self._kill_marked(pid) for pid in _own_pids() if pid != process.pid]):
                break
        if process.stdout is not None:
            process.stdout.close()
        try:
            process.wait(_KILL_WAIT)
        except subprocess.TimeoutExpired:
            self.abandoned = process

    def _kill_marked(self, pid: int) -> bool:
        """Kill a process if it is one of ours; held by a descriptor, so that a later one of its number is not hit."""
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                ours = f"{MARK}={self._token}".encode() in file.read().split(b"\0")
            if ours:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            return ours
        except OSError:
            return False
        finally:
            os.close(fd)


@contextlib.contextmanager
def _holding(text: str) -> Iterator[int]:
    """A descriptor from which a program can read that text, however slowly: nobody has to feed it."""
    if not text:
        yield subprocess.DEVNULL
        return
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    with open(fd, "wb", buffering=0) as file:
        file.write(text.encode("utf-8", "replace"))
        file.seek(0)
        yield fd


def check_executable(path: str) -> None:
    """Refuse a program that somebody but root (or the caller) could have written, or that is none.

    Raises:
        UntrustedFile: it, a directory above it, or a link on the way to it is not to be trusted.
        OSError: it is missing.

    """
    real = os.path.realpath(path)
    for one in (path, real):
        check_parents(one)
    if os.lstat(path).st_uid not in (0, os.geteuid()):
        raise UntrustedFile(path, f"it belongs to uid {os.lstat(path).st_uid}")
    status = os.stat(real)
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
        raise UntrustedFile(real, "it is no program")
    if status.st_uid not in (0, os.geteuid()):
        raise UntrustedFile(real, f"it belongs to uid {status.st_uid}")
    if status.st_mode & 0o022:
        raise UntrustedFile(real, f"others can write it (mode {status.st_mode & 0o7777:04o})")


def _pidfd(pid: int) -> int:
    """A descriptor that is readable when the process has ended; -1 where the kernel has none (before 5.3)."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _take(pipe: int, output: bytearray) -> bool:
    """Read what is there; False at the end of it."""
    with contextlib.suppress(BlockingIOError):
        for _ in range(64):  # a check that writes without end must not keep us from looking at the time
            chunk = os.read(pipe, MAX_OUTPUT)
            if not chunk:
                return False
            output += chunk[: MAX_OUTPUT - len(output)]
    return True


def _has_ended(pid: int) -> bool:
    """Say whether a child has ended, and leave it to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _own_pids() -> list[int]:
    """The processes of our own namespace, wherever `roots` point."""
    try:
        return all_pids("/proc")
    except OSError:
        return []
