"""A hook's system calls one by one, and strace's means to strike at exactly one of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.provision import find_program

PATIENCE = 20.0
"""Seconds until a traced hook that should have ended is given up."""
MEMORY = frozenset({"brk", "mmap", "munmap", "mremap", "madvise", "mprotect"})
"""How often these occur depends on the allocator, so the last of them may be missing from another run."""
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)


@dataclass(frozen=True)
class Call:
    """A system call: its name, the how manieth of that name in the run, and what strace printed."""

    name: str
    nth: int
    text: str

    def __str__(self) -> str:
        return f"{self.name}:when={self.nth} {self.text}"


@dataclass(frozen=True)
class Ended:
    """How a traced hook ended: its exit status (of `KILLED` if it was killed), its output, seconds."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def killed(self) -> bool:
        return self.status in KILLED


class Hook:
    """A hook's command line and environment, to be run under strace as often as a test likes."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        self._argv = list(argv)
        self._environ = dict(environ)
        self._log = log
        self._strace = find_program("strace") or "strace"

    def calls(self) -> list[Call]:
        """Run the hook to its end and return all its system calls."""
        ended = self._run()
        seen: Counter[str] = Counter()
        found = []
        for line in self._log.read_text(errors="replace").splitlines():
            text = line.partition(" ")[2].strip()
            name, bracket, _ = text.partition("(")
            if bracket and name.isidentifier():
                seen[name] += 1
                found.append(Call(name, seen[name], text))
        assert found and found[0].name == "execve" and not ended.killed, ended
        return found

    def killed_before(self, call: Call) -> Ended:
        """Run the hook and kill it as it enters the call: the kernel does not carry that call out any more."""
        return self._run("-e", f"trace={call.name}", "-e", f"inject={call.name}:signal=KILL:when={call.nth}")

    def refused(self, call: Call, error: str) -> Ended:
        """Run the hook; this one call fails and is not carried out."""
        refusal = f"inject={call.name}:error={error}:when={call.nth}"
        # A filter of the kernel's saves the stops at other calls; at its own stops strace cannot send a signal.
        return self._run("--seccomp-bpf", "-e", f"trace={call.name}", "-e", refusal)

    def struck(self, call: Call) -> bool:
        """Say whether the call that was refused in the last run is that very one, as far as its arguments show it.

        Files of a directory are read in the order in which the kernel lists them, which may be another in each run.
        """
        lines = self._log.read_text(errors="replace").splitlines()
        refused = [line.partition(" ")[2].strip() for line in lines if line.endswith("(INJECTED)")]
        return [_arguments(text) for text in refused] == [_arguments(call.text)]

    def _run(self, *options: str) -> Ended:
        began = time.monotonic()
        done = subprocess.run(
            [self._strace, "-f", "-qq", "-o", str(self._log), *options, *self._argv],
            env=self._environ,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def _arguments(text: str) -> str:
    """A call's name and first arguments, without what differs from run to run: addresses, answers, grants, numbers."""
    ends = r"\{|0x|\.\.\.|\) +=" + ('|"' if text.startswith("read(") else "")  # of a refused read there is no text
    known = re.split(ends, text, maxsplit=1)[0]
    return re.sub(r"[0-9a-f]{16}|(?<=-)\d+(?=-GPU)", "*", known)


def from_first_naming(calls: Sequence[Call], words: str) -> list[Call]:
    """Return the calls from the first that names `words` on; the execve at the start has them in its arguments."""
    first = next(at for at, call in enumerate(calls) if at and words in call.text)
    return list(calls[first:])


def in_child(hook: object, arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Return the status of a hook's function, run in a process of its own as hooks are."""
    pid = os.fork()
    if not pid:
        status = 70
        try:
            status = hook(arguments, environ)  # type: ignore[operator]
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
