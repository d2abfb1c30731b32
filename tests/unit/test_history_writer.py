"""The thread that writes history: it waits for a disk so that nobody else has to, and says what is lost."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nodeagent.history.entry import AGENT, HISTORY, XID, Entry, NoHistory
from nodeagent.history.place import OnNetwork
from nodeagent.history.reader import read
from nodeagent.history.store import Store
from nodeagent.history.writer import MOST_WAITING, Writer

FULL = sqlite3.OperationalError("database or disk is full")
DEADLINE = 10.0


class FakeStore:
    """Takes entries, or fails as the test says; the test can wait for what it wants to see."""

    path = "/data/history.db"
    moved = ""

    def __init__(self) -> None:
        self.written: list[Entry] = []
        self.failure: Exception | None = None
        self.open_failure: Exception | None = None
        self.there = True
        self.opened = self.closed = self.tries = 0
        self.gate = threading.Event()
        self.gate.set()
        self.changed = threading.Condition()

    def open(self) -> FakeStore:
        with self.changed:
            self.opened += 1
            self.changed.notify_all()
        if self.open_failure is not None:
            raise self.open_failure
        self.there = True
        return self

    def add(self, entries: Sequence[Entry]) -> int:
        self.gate.wait(DEADLINE)
        with self.changed:
            self.tries += 1
            self.changed.notify_all()
            if self.failure is not None:
                raise self.failure
            self.written += entries
            self.changed.notify_all()
        return 0

    def until(self, true: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(true, DEADLINE)

    def is_there(self) -> bool:
        return self.there

    def prune(self, now: float, max_age: float, max_size: int) -> None:
        self.pruned = (max_age, max_size)

    def size(self) -> int:
        return 4096 * len(self.written)

    def close(self) -> None:
        self.closed += 1


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **fields: self.lines.append((event, fields))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.lines]


class Desk:
    """A writer with its fake store and log."""

    def __init__(self, retry: float = 0.01) -> None:
        self.store = FakeStore()
        self.log = Log()
        self.writer = Writer(self.store.open, 100.0, 1 << 20, self.log, retry)  # type: ignore[arg-type]

    def start(self) -> None:
        self.writer.start()

    def kept(self) -> list[float]:
        return [entry.at for entry in self.store.written if entry.kind != HISTORY]


@pytest.fixture
def desk() -> Iterator[Desk]:
    one = Desk()
    yield one
    one.store.gate.set()
    one.writer.close()
    assert not one.writer._thread.is_alive()


def entry(at: int) -> Entry:
    return Entry(float(at), XID)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_entries_are_written_in_their_order_and_the_bounds_kept(desk: Desk) -> None:
    desk.start()
    for at in range(200):
        desk.writer.record(entry(at))
    desk.store.until(lambda: len(desk.store.written) == 200)
    assert desk.kept() == list(range(200))
    until(lambda: desk.writer.keeping().size == 4096 * 200)
    assert desk.store.pruned == (100.0, 1 << 20) and desk.writer.keeping().problem == ""
    assert desk.log.lines == []


def test_a_disk_that_hangs_costs_the_caller_nothing_and_losses_are_counted_and_said(desk: Desk) -> None:
    desk.store.gate.clear()
    desk.start()
    slowest = 0.0
    for at in range(MOST_WAITING + 50):
        began = time.perf_counter()
        desk.writer.record(entry(at))
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 0.5, "a lock between two threads, no disk"
    assert desk.writer.keeping().dropped == 50
    assert desk.log.kinds() == ["history_dropped"], "said once"
    desk.store.gate.set()
    desk.store.until(lambda: len(desk.store.written) == MOST_WAITING + 1)
    assert desk.kept() == list(range(MOST_WAITING)), "the beginning of a trouble is worth more than its repetition"
    assert desk.store.written[-1].kind == HISTORY and desk.store.written[-1].evidence.startswith("50 entries")
    assert desk.writer.keeping().dropped == 50


@pytest.mark.parametrize("where", ["add", "open"])
def test_a_full_disk_is_said_once_and_what_waits_is_written_when_there_is_room(desk: Desk, where: str) -> None:
    setattr(desk.store, "failure" if where == "add" else "open_failure", FULL)
    desk.start()
    desk.writer.record(entry(1))
    desk.store.until(lambda: desk.store.opened >= 4)
    assert desk.writer.keeping().problem == str(FULL)
    assert [(kind, about["why"]) for kind, about in desk.log.lines] == [("history_unavailable", str(FULL))]
    desk.writer.record(entry(2))
    desk.store.failure = desk.store.open_failure = None
    desk.store.until(lambda: len(desk.store.written) == 2)
    until(lambda: desk.writer.keeping().problem == "")
    assert desk.kept() == [1, 2] and desk.log.kinds() == ["history_unavailable", "history_resumed"]


def test_another_trouble_is_said_too(desk: Desk) -> None:
    desk.store.open_failure = OnNetwork("/data", "nfs4")
    desk.start()
    until(lambda: desk.log.kinds() == ["history_unavailable"])
    desk.store.open_failure = PermissionError(13, "Permission denied", "/data")
    until(lambda: len(desk.log.lines) == 2)
    assert "network file system (nfs4)" in desk.log.lines[0][1]["why"]
    assert "Permission denied" in desk.log.lines[1][1]["why"]


def test_a_bug_of_ours_ends_no_thread(desk: Desk) -> None:
    desk.store.failure = RuntimeError("bug")
    desk.start()
    desk.writer.record(entry(1))
    desk.store.until(lambda: desk.store.tries >= 2)
    desk.store.failure = None
    desk.store.until(lambda: len(desk.store.written) == 1)
    assert desk.log.lines[0][1]["why"] == "RuntimeError('bug')"


def test_a_file_that_is_gone_is_made_anew(desk: Desk) -> None:
    desk.start()
    desk.writer.record(entry(1))
    desk.store.until(lambda: len(desk.store.written) == 1)
    desk.store.there = False
    desk.writer.record(entry(2))
    desk.store.until(lambda: len(desk.store.written) == 2)
    assert desk.store.opened == 2 and desk.store.closed == 1


def test_history_says_that_an_earlier_one_was_moved_aside(desk: Desk) -> None:
    desk.store.moved = "file is not a database"
    desk.start()
    desk.store.until(lambda: len(desk.store.written) == 1)
    assert desk.store.written[0].evidence == "what was kept before is in /data/history.db.damaged"
    assert desk.log.lines[0][0] == "history_damaged" and desk.log.lines[0][1]["why"] == "file is not a database"


def test_the_end_writes_what_waits(desk: Desk) -> None:
    for at in range(100):
        desk.writer.record(entry(at))
    desk.start()
    desk.writer.close()
    assert desk.kept() == list(range(100)) and desk.store.closed == 1


def test_the_end_does_not_wait_for_a_disk_that_hangs(desk: Desk) -> None:
    desk.store.gate.clear()
    desk.start()
    desk.writer.record(entry(1))
    began = time.monotonic()
    desk.writer.close()
    assert time.monotonic() - began < 4
    assert desk.log.lines[-1] == ("history_dropped", {"why": "no time left", "entries": 1})


def test_the_end_with_a_full_disk_says_what_is_lost(desk: Desk) -> None:
    desk.store.failure = FULL
    desk.start()
    desk.writer.record(entry(1))
    desk.writer.close()
    assert desk.log.lines[-1] == ("history_dropped", {"why": str(FULL), "entries": 1})


def test_a_locked_database_is_waited_for_in_the_thread_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    Store(str(tmp_path)).close()
    other = sqlite3.connect(tmp_path / "history.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    log = Log()
    writer = Writer(lambda: Store(str(tmp_path)), 1e12, 64 << 20, log, 0.05)
    writer.start()
    try:
        slowest = 0.0
        for at in range(500):
            began = time.perf_counter()
            writer.record(Entry(time.time() + at, AGENT))
            writer.keeping()
            slowest = max(slowest, time.perf_counter() - began)
        assert slowest < 0.5
        until(lambda: writer.keeping().problem == "database is locked")
        other.execute("COMMIT")
        until(lambda: len(read(str(tmp_path))) == 500)
    finally:
        other.close()
        writer.close()
    assert log.kinds()[0] == "history_unavailable" and writer.keeping().dropped == 0


def test_without_a_history_nothing_is_kept_and_nothing_is_wrong() -> None:
    none = NoHistory()
    none.record(entry(1))
    none.close()
    assert none.keeping().problem == "" and none.keeping().size is None
