"""The means to change things, with nothing behind them: what `--dry-run` runs instead of the real ones."""

from __future__ import annotations

from nodeagent.agent.actions import Actions
from nodeagent.agent.records import Records
from nodeagent.cli.login import login
from nodeagent.config.model import Config
from nodeagent.history.entry import Entry
from nodeagent.lock.flock import FLOCK_TIMEOUT, Flock
from nodeagent.lock.store import Store
from nodeagent.scheduler.registry import scheduler_of
from nodeagent.scheduler.rehearsal import Rehearsal
from nodeagent.scheduler.turn import Turn, Unshared
from nodeagent.state.boot import boot_id
from nodeagent.state.files import Directory


class Untouched(Directory):
    """A directory that is read as it is, and to which nothing is written. One that is missing is empty."""

    __slots__ = ()

    def __init__(self, path: str, parent: Directory | None = None, name: str = "") -> None:
        """Open it; it is not made. Raises as Directory does, but for a missing one."""
        self.path, self.fd = path, -1
        if parent is None or parent.fd >= 0:
            try:
                super().__init__(path, False, parent, name)
            except FileNotFoundError:
                self.fd = -1

    def close(self) -> None:
        """See Directory."""
        if self.fd >= 0:
            super().close()

    def sub(self, name: str, create: bool = False) -> Directory:
        """See Directory."""
        found = Untouched(f"{self.path}/{name}", self, name)
        if found.fd < 0 and not create:
            raise FileNotFoundError(found.path)
        return found

    def read(self, name: str) -> str:
        """See Directory."""
        if self.fd < 0:
            raise FileNotFoundError(f"{self.path}/{name}")
        return super().read(name)

    def names(self) -> list[str]:
        """See Directory."""
        return super().names() if self.fd >= 0 else []

    def replace(self, name: str, text: str, durable: bool = False, mode: int = 0o644) -> None:
        """Leave it as it is."""

    def remove(self, name: str) -> bool:
        """Leave it as it is; say whether it is there."""
        return name in self.names()


class _NoFlock(Flock):
    """Keeps nobody out: nothing is changed meanwhile that another could get in the way of."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class _RehearsedStore(Store):
    def exclusive(self, timeout: float = FLOCK_TIMEOUT) -> Flock:
        return _NoFlock("", timeout, self.trace)


class _RehearsedRecords(Records):
    def __init__(self, data: Directory) -> None:
        self._data = data


class _RehearsedActions(Actions):
    def turn(self) -> Turn:
        return Unshared()  # nobody is kept waiting


def rehearsed(config: Config) -> tuple[Actions, Rehearsal]:
    """Return the means to change things on this node, which change nothing, and what the scheduler would be told."""
    rehearsal = Rehearsal()
    scheduler = scheduler_of(config, rehearsal, rehearsal.converse)
    store = _RehearsedStore(Untouched(config.state_dir))
    records = _RehearsedRecords(Untouched(config.data_dir))
    boot, limit = boot_id(config.roots.proc), config.limits.max_drained
    return _RehearsedActions(store, records, scheduler, limit, boot, _told_nobody, login()), rehearsal


def _told_nobody(entry: Entry) -> None:
    """History has nothing of a rehearsal."""
