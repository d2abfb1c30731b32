"""The tables of history.db, how an older file is brought up to date, and what an entry is in a row."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from nodeagent.errors import NodeAgentError
from nodeagent.history.entry import Entry

COLUMNS = (
    *("at", "kind", "boot_id", "unit", "gpu_index", "bus_id", "serial", "before", "after"),
    *("check_name", "severity", "action", "by", "evidence", "count", "findings", "facts"),
)
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE entry (
            id INTEGER PRIMARY KEY,
            at REAL NOT NULL,
            kind TEXT NOT NULL,
            boot_id TEXT NOT NULL,
            unit TEXT NOT NULL,
            gpu_index INTEGER,
            bus_id TEXT NOT NULL,
            serial TEXT NOT NULL,
            before TEXT NOT NULL,
            after TEXT NOT NULL,
            check_name TEXT NOT NULL,
            severity TEXT NOT NULL,
            action TEXT NOT NULL,
            by TEXT NOT NULL,
            evidence TEXT NOT NULL,
            count INTEGER NOT NULL,
            findings TEXT NOT NULL,
            facts TEXT NOT NULL
        )""",
        "CREATE INDEX entry_at ON entry (at)",
        "CREATE INDEX entry_unit ON entry (unit, kind)",
    ),
)
"""Statements that lead from version n to n + 1; the file's own version is SQLite's user_version."""
VERSION = len(MIGRATIONS)

_LONGEST_TEXT = 4096
_LONGEST_FACTS = 16 << 10
_MOST_FINDINGS = 32


class NewerHistory(NodeAgentError):
    """A later release has written the file: this one neither reads nor changes it."""

    exit_code = 69

    def __init__(self, path: str, found: int) -> None:
        self.path = path
        self.found = found
        super().__init__(path, found)

    def __str__(self) -> str:
        return (
            f"{self.path}: version {self.found} is of a later release, this one knows {VERSION};"
            " install that release again, or move the file away"
        )


def version(database: sqlite3.Connection, path: str) -> int:
    """Return the file's version.

    Raises:
        NewerHistory: it is above ours.

    """
    found = int(database.execute("PRAGMA user_version").fetchone()[0])
    if found > VERSION:
        raise NewerHistory(path, found)
    return found


def migrate(database: sqlite3.Connection, path: str, migrations: tuple[tuple[str, ...], ...] = MIGRATIONS) -> None:
    """Bring the file to this release's version, each step whole or not at all."""
    for done in range(version(database, path), len(migrations)):
        database.execute("BEGIN IMMEDIATE")
        try:
            for statement in migrations[done]:
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {done + 1}")
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise


def row_of(entry: Entry) -> tuple[Any, ...]:
    """Return an entry's values in the order of COLUMNS, bounded in length, all text valid UTF-8."""
    words = (entry.kind, entry.boot_id, entry.unit)
    place = (entry.index, _text(entry.bus_id), _text(entry.serial))
    more = (entry.before, entry.after, entry.check, entry.severity, entry.action, entry.by, entry.evidence)
    findings = json.dumps([dict(finding) for finding in entry.findings[:_MOST_FINDINGS]])
    return (entry.at, *map(_text, words), *place, *map(_text, more), entry.count, findings, _facts(entry.facts))


def entry_of(row: sqlite3.Row) -> Entry:
    """Return the entry of a row.

    Raises:
        ValueError: its JSON is damaged.

    """
    names = {"gpu_index": "index", "check_name": "check"}
    values = {names.get(column, column): row[column] for column in COLUMNS}
    values["findings"] = tuple(json.loads(values["findings"]))
    values["facts"] = json.loads(values["facts"])
    return Entry(**values)


def _text(words: str) -> str:
    return words[:_LONGEST_TEXT].encode("utf-8", "backslashreplace").decode()


def _facts(facts: Mapping[str, Any]) -> str:
    """Return facts as JSON; what is long is left out, for a job decides how many processes a GPU has."""
    kept = dict(facts)
    text = json.dumps(kept, separators=(",", ":"))
    for part in ("processes", "links", "mig"):
        if len(text) > _LONGEST_FACTS and part in kept:
            kept[part] = "left out"
            text = json.dumps(kept, separators=(",", ":"))
    return text if len(text) <= _LONGEST_FACTS else '{"left_out":true}'
