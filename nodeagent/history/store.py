"""history.db open for writing: by one thread of the agent, and by nobody else."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress

from nodeagent.errors import NodeAgentError
from nodeagent.history.entry import VERDICT, Entry
from nodeagent.history.place import BESIDE, FILE, local_directory, touch
from nodeagent.history.schema import COLUMNS, migrate, row_of, version

ASIDE = f"{FILE}.damaged"
_BUSY = 2.0
_LOG_PAGES = 256
_MOST_BY_AGE = 1000
_WELL = "OK"
_SETTINGS = (
    # given back piece by piece; must come before the first table
    "PRAGMA auto_vacuum = INCREMENTAL",
    # The last entry before a node dies is the one that is looked for: each commit is on the disk, not in its cache.
    "PRAGMA synchronous = FULL",
    f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}",
    "PRAGMA journal_size_limit = 0",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA temp_store = MEMORY",
)
_INSERT = f"INSERT INTO entry ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608


class NotSuitable(NodeAgentError):
    """SQLite cannot keep its log there."""

    exit_code = 69

    def __init__(self, path: str, mode: str) -> None:
        self.path = path
        self.mode = mode
        super().__init__(path, mode)

    def __str__(self) -> str:
        return f"{self.path}: no write-ahead log can be had there ({self.mode})"


class Damaged(NodeAgentError):
    """The file is no database, or a damaged one."""

    exit_code = 69

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(path, why)

    def __str__(self) -> str:
        return f"{self.path}: damaged: {self.why}"


class Store:
    """The open database. To be used from the thread that opened it.

    Raises what keeps it from being opened: NodeAgentError, sqlite3.Error, OSError. A damaged file is moved aside (to
    `history.db.damaged`, over an earlier one) and a new one begun; `moved` then says why.
    """

    def __init__(self, data_dir: str) -> None:
        self.path = f"{data_dir}/{FILE}"
        self.moved = ""
        directory = local_directory(data_dir)
        try:
            self._file = touch(directory)
            try:
                self._database = _opened(self.path)
            except Damaged as error:
                self.moved = error.why
                _move_aside(self.path)
                self._file = touch(directory)
                self._database = _opened(self.path)
        finally:
            directory.close()

    def close(self) -> None:
        """Let the database go."""
        with suppress(sqlite3.Error):
            self._database.close()

    def is_there(self) -> bool:
        """Say whether the file under the name is still the one that is open."""
        try:
            return os.path.samestat(os.stat(self.path, follow_symlinks=False), self._file)
        except OSError:
            return False

    def add(self, entries: Sequence[Entry]) -> int:
        """Write entries, all or none; returns how many of them cannot be written by anybody.

        Raises:
            sqlite3.Error: none was written.

        """
        unfit = 0
        self._database.execute("BEGIN IMMEDIATE")
        try:
            for entry in entries:
                try:
                    self._add(entry)
                except (ValueError, TypeError, OverflowError, sqlite3.InterfaceError):  # one must not block the rest
                    unfit += 1
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        return unfit

    def _add(self, entry: Entry) -> None:
        row = list(row_of(entry))
        if entry.again and entry.kind == VERDICT:
            last = self._database.execute(
                "SELECT after, boot_id FROM entry WHERE unit = ? AND kind = ? ORDER BY id DESC LIMIT 1",
                (entry.unit, VERDICT),
            ).fetchone()
            if last is not None and last[0] == entry.after and (last[1] == entry.boot_id or entry.after == _WELL):
                return
            row[COLUMNS.index("before")] = last[0] if last is not None else ""
        elif entry.again:
            same = "SELECT 1 FROM entry WHERE unit = ? AND kind = ? AND at = ?"
            if self._database.execute(same, (entry.unit, entry.kind, entry.at)).fetchone() is not None:
                return
        self._database.execute(_INSERT, row)

    def prune(self, now: float, max_age: float, max_size: int) -> None:
        """Remove what is older than `max_age` seconds, and the oldest while there is more than `max_size` bytes.

        Of what is too old a thousand at a time: a clock that is wrong for a moment must not cost everything.
        """
        old = "DELETE FROM entry WHERE id IN (SELECT id FROM entry WHERE at < ? ORDER BY at LIMIT ?)"
        if self._database.execute(old, (now - max_age, _MOST_BY_AGE)).rowcount:
            self._give_back()
        # The log and what one call of `add` brings come on top of the tables.
        while self._used() > max_size * 5 // 8:
            least, most = self._database.execute("SELECT MIN(id), MAX(id) FROM entry").fetchone()
            if least is None:
                return
            self._database.execute("DELETE FROM entry WHERE id <= ?", (least + (most - least) // 20,))
            self._give_back()

    def _used(self) -> int:
        pages, free, size = (
            int(self._database.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def _give_back(self) -> None:
        # `execute` stops at its first row, which has no columns: one page. A script runs to its end.
        self._database.executescript("PRAGMA incremental_vacuum")
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def size(self) -> int:
        """Return the bytes on the disk, with what is beside the file."""
        total = 0
        for name in (self.path, *(self.path + end for end in BESIDE)):
            with suppress(OSError):
                total += os.stat(name).st_size
        return total


def _opened(path: str) -> sqlite3.Connection:
    """Open, check and bring up to date.

    Raises:
        Damaged: it has to be moved aside.
        NewerHistory, NotSuitable, sqlite3.OperationalError: it has to be left as it is.

    """
    database = sqlite3.connect(path, timeout=_BUSY, isolation_level=None)
    try:
        version(database, path)
        for statement in _SETTINGS:
            database.execute(statement)
        mode = str(database.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        if mode != "wal":
            raise NotSuitable(path, mode)
        found = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
        if found != "ok":
            raise Damaged(path, found)
        migrate(database, path)
    except sqlite3.Error as error:
        database.close()
        # SQLite's "corrupt" and "not a database" come as the base class itself; a full disk, a lock as another.
        if type(error) is sqlite3.DatabaseError:
            raise Damaged(path, str(error)) from error
        raise
    except NodeAgentError:
        database.close()
        raise
    return database


def _move_aside(path: str) -> None:
    os.rename(path, f"{path.rpartition('/')[0]}/{ASIDE}")
    for end in BESIDE:
        with suppress(FileNotFoundError):
            os.unlink(path + end)
