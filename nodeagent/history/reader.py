"""history.db open for reading, beside an agent that writes or without one."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from urllib.parse import quote

from nodeagent.errors import NodeAgentError
from nodeagent.history.entry import Entry
from nodeagent.history.place import FILE, local_directory
from nodeagent.history.schema import COLUMNS, VERSION, entry_of, version

_BUSY = 2.0


class NoHistoryYet(NodeAgentError):
    """There is no database."""

    exit_code = 69

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(path)

    def __str__(self) -> str:
        return f"{self.path}: missing; has gpu-nodeagent.service run on this node?"


class NotReadable(NodeAgentError):
    """The database is damaged, or locked by somebody."""

    exit_code = 69

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(path, why)

    def __str__(self) -> str:
        return f"{self.path}: {self.why}; a running agent moves a damaged file aside"


def read(
    data_dir: str, gpu: str = "", since: float = 0.0, kinds: Sequence[str] = (), limit: int | None = None
) -> list[Entry]:
    """Return entries from the oldest to the newest, the newest `limit` of them.

    `gpu` is a UUID (its parts are meant too) or the beginning of one, a serial or a bus id: also of a GPU that this
    node has no more.

    Raises:
        NoHistoryYet, NewerHistory, NotReadable, OnNetwork, UntrustedFile, OSError: none can be read.

    """
    path = f"{data_dir}/{FILE}"
    try:
        directory = local_directory(data_dir)
        try:  # for the reason why it cannot be read, which SQLite does not tell
            os.close(os.open(FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory.fd))
        finally:
            directory.close()
    except FileNotFoundError as error:
        raise NoHistoryYet(path) from error
    try:
        database = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=_BUSY, isolation_level=None)
        try:
            return _selected(database, path, gpu, since, kinds, -1 if limit is None else limit)
        finally:
            database.close()
    except (sqlite3.Error, ValueError) as error:
        raise NotReadable(path, str(error)) from error


_OF_GPU = """AND unit != '' AND (substr(unit, 1, length(?)) = ?
    OR unit IN (SELECT unit FROM entry WHERE serial = ? OR bus_id = ?))"""


def _selected(
    database: sqlite3.Connection, path: str, gpu: str, since: float, kinds: Sequence[str], limit: int
) -> list[Entry]:
    if version(database, path) < VERSION:
        raise NoHistoryYet(path)
    database.row_factory = sqlite3.Row
    of_kind = f"AND kind IN ({', '.join('?' * len(kinds))})" if kinds else ""
    where = f"at >= ? {of_kind} {_OF_GPU if gpu else ''}"
    query = f"SELECT {', '.join(COLUMNS)} FROM entry WHERE {where} ORDER BY id DESC LIMIT ?"  # noqa: S608
    rows = database.execute(query, (since, *kinds, *([gpu] * 4 if gpu else ()), limit))
    return [entry_of(row) for row in rows][::-1]
