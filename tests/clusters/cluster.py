"""What both clusters have in common: a directory, daemons below one parent, client commands as any user."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tests.clusters import process
from tests.clusters.process import ClusterError, CommandFailed, Daemon, Nursery

C = TypeVar("C", bound="Cluster")

NOT_FATAL = frozenset({signal.SIGSTOP, signal.SIGCONT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})


class Cluster(ABC):
    """A scheduler below `directory`, which every user must be able to pass through.

    Use it as a context manager, or `start` and `stop` it. Files stay after `stop`; its processes do not.
    """

    client_directories: tuple[str, ...] = ()
    """Where client commands are besides the system's directories."""

    def __init__(self, directory: Path) -> None:
        process.require_open(directory)
        self.directory = directory
        self.logs = directory / "log"
        self._nursery = Nursery(self.logs)

    def __enter__(self: C) -> C:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    @abstractmethod
    def environment(self) -> dict[str, str]:
        """The variables that make a client command one of this cluster."""

    @abstractmethod
    def _start(self, timeout: float) -> None:
        """Start everything; returns when jobs can run."""

    def start(self, timeout: float = 20) -> None:
        """Start everything; returns when jobs can run.

        Raises ClusterError with the tails of the logs; everything is stopped again then.
        """
        try:
            self._start(timeout)
        except (ClusterError, OSError, subprocess.SubprocessError) as error:
            detail = self.log_tails()
            self.stop()
            raise ClusterError(f"{type(self).__name__} did not start: {error}\n{detail}") from error

    def stop(self) -> None:
        """End every process of the cluster, jobs and their leftovers included. Harmless when repeated."""
        self._nursery.stop()

    def pids(self) -> list[int]:
        """Every live process of the cluster: daemons, steps, jobs and what these have left."""
        return self._nursery.pids()

    def log_files(self) -> list[Path]:
        """The logs of all daemons."""
        return sorted(self.logs.glob("*"))

    def log_tails(self) -> str:
        """The last lines of every log, for a message."""
        return "\n".join(filter(None, map(process.tail, self.log_files())))

    def work(self, user: str) -> Path:
        """The directory that the user's jobs start in and write their output to."""
        path = self.directory / f"work-{user}"
        if not path.exists():
            path.mkdir()
            account = pwd.getpwnam(user)
            os.chown(path, account.pw_uid, account.pw_gid)
        return path

    def command(
        self,
        user: str,
        argv: Sequence[str],
        *,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        timeout: float = 30,
    ) -> subprocess.CompletedProcess[str]:
        """Any client command as `user` in `work(user)`, to its end; the status is the caller's to judge.

        The environment is that of a fresh login, the cluster's own variables and `env`.
        """
        words, environment = self.invocation(user, argv)
        return subprocess.run(
            words,
            input=stdin,
            env={**environment, **(env or {})},
            cwd=self.work(user),
            timeout=timeout,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )

    def invocation(self, user: str, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The words and the environment that run a client command as `user` where the cluster is."""
        full = process.as_user(user, [process.program(argv[0], *self.client_directories), *argv[1:]])
        return [*self._entrance(self.work(user)), *full], process.clean_environment(user, **self.environment)

    def _entrance(self, cwd: Path) -> list[str]:  # noqa: ARG002 - for clusters that are elsewhere
        """The words before a client command that run it where the cluster is, in `cwd`."""
        return []

    def checked(self, *argv: str) -> str:
        """A client command as root; returns its output, raises CommandFailed."""
        result = self.command("root", argv)
        if result.returncode:
            raise CommandFailed(argv, result)
        return result.stdout

    def _answers(self, daemon: Daemon, *question: str) -> bool:
        """Whether a command succeeds; raises ClusterError when the daemon that should answer it has ended."""
        if (status := daemon.status()) is not None:
            raise ClusterError(f"{daemon.name} ended with {status}")
        return self.command("root", question).returncode == 0

    @staticmethod
    def _signal(daemon: Daemon | None, number: int) -> None:
        """Send a signal, and wait for the end of the daemon where the signal ends it."""
        if daemon is None:
            raise ClusterError("the cluster is stopped")
        if number in NOT_FATAL:
            daemon.send(number)
        else:
            daemon.end(10, number)
