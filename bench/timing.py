"""Whole processes, timed from their start to their end; system calls counted by strace."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.failure import BenchFailed


def run_once(argv: list[str], environ: Mapping[str, str]) -> float:
    """Run a process with its output thrown away and return its wall time in milliseconds.

    Raises:
        BenchFailed: it did not end with 0.

    """
    silent = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    ]
    began = time.perf_counter_ns()
    pid = os.posix_spawn(argv[0], argv, environ, file_actions=silent)
    _, status = os.waitpid(pid, 0)
    took = time.perf_counter_ns() - began
    if status != 0:
        raise BenchFailed(f"{' '.join(argv)}: ended with {os.waitstatus_to_exitcode(status)}")
    return took / 1e6


def system_calls(argv: Sequence[str], environ: Mapping[str, str], scratch: Path) -> int | None:
    """Run a process once under strace and return how many system calls it made; None without strace."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    told = scratch / "strace"
    command = [strace, "-c", "-f", "-o", str(told), *argv]
    subprocess.run(command, env=dict(environ), stdout=subprocess.DEVNULL, timeout=60, check=True)
    total = next(line.split() for line in told.read_text().splitlines() if line.endswith(" total"))
    return int(total[3])


class Times:
    """The wall times of one command, in milliseconds."""

    def __init__(self) -> None:
        self.all: list[float] = []

    def add(self, milliseconds: float) -> None:
        """Take one more."""
        self.all.append(milliseconds)

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.all)

    @property
    def p99(self) -> float:
        """The time that 99 % of the runs did not exceed."""
        return sorted(self.all)[max(0, -(-len(self.all) * 99 // 100) - 1)]
