"""history.db against what really happens: SIGKILL at any moment, a disk that is full, a frozen one."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.history.entry import VERDICT, XID, Entry
from nodeagent.history.place import FILE
from nodeagent.history.reader import read
from nodeagent.history.store import ASIDE, Store
from nodeagent.history.writer import Writer
from tests.integration.support import unavailable
from tests.simulated_node import until

ROOT = Path(__file__).resolve().parents[2]
KILLS = 50


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **fields: self.lines.append((event, fields))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.lines]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0755", "none", str(place)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        unavailable("no tmpfs to mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def numbers(data: Path) -> list[int]:
    return [int(entry.check) for entry in read(str(data), kinds=[XID])]


def test_a_writer_that_is_killed_at_any_moment_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    chance = random.Random(20)  # noqa: S311
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    next_number, killed_at_work = 0, 0
    for kill in range(KILLS):
        argv = [sys.executable, "-m", "tests.contract.history_scene", str(tmp_path), str(next_number)]
        with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            said = ""
            if kill % 5:  # every fifth is killed while it begins: opens, checks, makes the tables
                said = child.stdout.readline()
                time.sleep(chance.uniform(0, 0.03))
            else:
                time.sleep(chance.uniform(0.01, 0.08))
            child.kill()
            lines = (said + child.stdout.read()).split("\n")[:-1]  # what has no end was not told
        assert all(line.isdigit() for line in lines), lines
        killed_at_work += bool(lines)
        committed = int(lines[-1]) if lines else next_number - 1
        if not (tmp_path / FILE).exists() or not (tmp_path / FILE).stat().st_size:
            continue
        found = numbers_after_reopening(tmp_path)
        assert not found or found == list(range(found[0], found[-1] + 1)), "each is there once, in its order"
        last = found[-1] if found else -1
        assert committed <= last <= committed + 32, "one batch may be committed and not yet told"
        next_number = last + 1
    assert killed_at_work >= KILLS // 2 and next_number > 200
    assert not (tmp_path / ASIDE).exists()


def numbers_after_reopening(data: Path) -> list[int]:
    as_it_lies = numbers(data) if has_tables(data) else []
    store = Store(str(data))
    assert store.moved == ""
    store.close()
    assert store.size() <= 4 << 20, "the log that the kill has left is taken up"
    assert numbers(data) == as_it_lies
    return as_it_lies


def has_tables(data: Path) -> bool:
    database = sqlite3.connect(data / FILE)
    try:
        return bool(database.execute("PRAGMA user_version").fetchone()[0])
    finally:
        database.close()


def test_a_full_disk_stops_nobody_and_what_waited_is_written_when_there_is_room(small_disk: Path) -> None:
    log = Log()
    writer = Writer(lambda: Store(str(small_disk)), 1e12, 64 << 20, log, retry=0.05)
    writer.start()
    try:
        slowest, at = 0.0, 0
        facts = {"a": "x" * 8000}
        while not writer.keeping().problem:
            began = time.perf_counter()
            writer.record(Entry(float(at), VERDICT, facts=facts))
            slowest = max(slowest, time.perf_counter() - began)
            at += 1
            time.sleep(0.001)
        assert "full" in writer.keeping().problem and slowest < 0.5
        assert log.kinds() == ["history_unavailable"]
        subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
        until(lambda: len(read(str(small_disk))) == at, "all entries")
        until(lambda: not writer.keeping().problem, "room")
        assert [entry.at for entry in read(str(small_disk))] == list(range(at))
        assert writer.keeping().dropped == 0 and log.kinds()[-1] == "history_resumed"
    finally:
        writer.close()


def test_a_disk_that_is_full_from_the_start_is_said_once(small_disk: Path) -> None:
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 4096)
    log, opened = Log(), []

    def open_store() -> Store:
        opened.append(1)
        return Store(str(small_disk))

    writer = Writer(open_store, 1e12, 64 << 20, log, retry=0.02)
    writer.start()
    try:
        writer.record(Entry(1.0, VERDICT))
        until(lambda: len(opened) >= 5, "five tries")
        assert log.kinds() == ["history_unavailable"]
        filler.unlink()
        until(lambda: not writer.keeping().problem, "room")
    finally:
        writer.close()
    assert [entry.at for entry in read(str(small_disk))] == [1.0]


def test_a_disk_that_hangs_costs_the_loop_nothing(frozen: Path) -> None:
    subprocess.run(["fsfreeze", "-u", str(frozen)], check=True)
    data = frozen / "data"
    data.mkdir()
    frozen.chmod(0o755)
    log = Log()
    writer = Writer(lambda: Store(str(data)), 1e12, 64 << 20, log)
    writer.start()
    writer.record(Entry(0.0, VERDICT))
    until(lambda: writer.keeping().size is not None, "the first entry")
    subprocess.run(["fsfreeze", "-f", str(frozen)], check=True)
    slowest = 0.0
    for at in range(1, 1500):
        began = time.perf_counter()
        writer.record(Entry(float(at), VERDICT))
        writer.keeping()
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 0.5 and writer.keeping().dropped > 400
    began = time.monotonic()
    writer.close()
    assert time.monotonic() - began < 4, "the end does not wait for it either"
    subprocess.run(["fsfreeze", "-u", str(frozen)], check=True)
    writer._thread.join(30)
    assert not writer._thread.is_alive()
    subprocess.run(["fsfreeze", "-f", str(frozen)], check=True)  # as the fixture left it
