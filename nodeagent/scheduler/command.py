"""The one runner of processes: argv lists with absolute paths, a time-out, a clean environment, never a shell."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from nodeagent.errors import CommandFailed

BASE_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/"}
MAX_OUTPUT = 4 << 20


class Runner(Protocol):
    """Runs a command and returns what it printed."""

    def __call__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        timeout: float = 5.0,
        complaints: bool = False,
    ) -> str:
        """Return the standard output (text); with `complaints` what came on standard error follows it.

        Raises:
            CommandFailed: not found, exit status other than 0, or not ended in `timeout` seconds (status None).

        """


def run(
    argv: Sequence[str],
    environment: Mapping[str, str] | None = None,
    timeout: float = 5.0,
    complaints: bool = False,
) -> str:
    """Run `argv` in a process group of its own, which is killed as a whole when it takes too long. See Runner."""
    try:
        process = subprocess.Popen(
            argv,
            env={**BASE_ENVIRONMENT, **(environment or {})},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise CommandFailed(argv, 127, str(error.strerror)) from error
    try:
        output, complaint = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        _end_group(process)
        said = error.stderr or error.output or b""  # bytes, also where text was asked for
        raise CommandFailed(argv, None, said.decode(errors="replace") if isinstance(said, bytes) else said) from error
    if process.returncode != 0:
        raise CommandFailed(argv, process.returncode, complaint or output)
    return (output + complaint if complaints else output)[:MAX_OUTPUT]


class Asked(Protocol):
    """A program that answers line by line."""

    def ask(self, *lines: str) -> list[str]:
        """Give it lines, the next one without waiting for the answer to the last; return its answer to each.

        Raises:
            CommandFailed: it has ended, or did not answer in time.

        """

    def complaints(self) -> str:
        """Return what it has said on standard error since this was last asked."""


class Converse(Protocol):
    """Begins a conversation with a program (see Conversation)."""

    def __call__(
        self, argv: Sequence[str], prompt: str, environment: Mapping[str, str] | None = None, timeout: float = 5.0
    ) -> AbstractContextManager[Asked]:
        """Return it, to be entered."""


class Conversation(AbstractContextManager[Asked]):
    """A program that prompts, is given a line and prompts again. See Asked; ended with the block.

    All its answers together may take `timeout` seconds.
    """

    def __init__(
        self, argv: Sequence[str], prompt: str, environment: Mapping[str, str] | None = None, timeout: float = 5.0
    ) -> None:
        self._argv = argv
        text = re.escape(prompt.encode())
        # at the start of a line, or behind another one: what is asked is not echoed by every build
        self._prompt = re.compile(rb"(?:\A|(?<=\n)|(?<=" + text + rb"))" + text)
        self._deadline = time.monotonic() + timeout
        try:
            self._process = subprocess.Popen(
                argv,
                env={**BASE_ENVIRONMENT, **(environment or {})},
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise CommandFailed(argv, 127, str(error.strerror)) from error
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._in, self._out, self._err = (pipe.fileno() for pipe in pipes if pipe is not None)

    def __enter__(self) -> Conversation:
        """Wait for the first prompt."""
        try:
            self._answers(1)
        except CommandFailed:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the program; what it has not said by now is of no use any more."""
        _end_group(self._process)

    def ask(self, *lines: str) -> list[str]:
        """See Asked."""
        try:
            os.write(self._in, "".join(f"{line}\n" for line in lines).encode())
        except BrokenPipeError:
            pass  # the end of its output says how it ended
        answers = self._answers(len(lines))
        return [
            answer[len(line) + 1 :] if answer.startswith(f"{line}\n") else answer
            for line, answer in zip(lines, answers)
        ]

    def complaints(self) -> str:
        """See Asked."""
        said = os.read(self._err, MAX_OUTPUT) if select.select([self._err], [], [], 0)[0] else b""
        return said.decode(errors="replace")

    def _answers(self, count: int) -> list[str]:
        """Return what is said until as many prompts have come."""
        said = b""
        while len(ends := list(self._prompt.finditer(said))) < count:
            left = self._deadline - time.monotonic()
            if left <= 0 or not select.select([self._out], [], [], left)[0]:
                raise CommandFailed(self._argv, None, self.complaints())
            part = os.read(self._out, 1 << 16)
            said += part
            if not part or len(said) > MAX_OUTPUT:
                raise CommandFailed(self._argv, self._ended(), self.complaints() or said.decode(errors="replace"))
        starts = [0, *(end.end() for end in ends)]
        return [said[start : end.start()].decode(errors="replace") for start, end in zip(starts, ends)]

    def _ended(self) -> int | None:
        try:
            return self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            return None


def _end_group(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Kill the group and let go of it: a process in state D is not waited for."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        pass
