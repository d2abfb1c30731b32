"""The one runner of processes: argv lists with absolute paths, a time-out, a clean environment, never a shell."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
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
        raise CommandFailed(argv, None, "") from error
    if process.returncode != 0:
        raise CommandFailed(argv, process.returncode, complaint or output)
    return (output + complaint if complaints else output)[:MAX_OUTPUT]


def _end_group(process: subprocess.Popen[str]) -> None:
    """Kill the group and let go of it: a process in state D is not waited for."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        pass
