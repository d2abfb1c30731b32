"""A recording: raw facts as JSON lines, one sweep a line, with what is known to have been true. Pure.

The first line is the header. Then each line is one object with one of the keys

- `facts`: a sweep (gpu/facts.py: NodeFacts) with the XIDs that came since the one before, and `at`, its time in
  seconds since the recording began. Monotonic time is the boot's; `at` goes on over reboots.
- `truth`: a fault that was there, `from` and `to` in the same seconds (`to` null: until the end), `unit` a UUID
  (empty: the node), `fault` the name of the check that ought to find it.

What a reader does not know it passes over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any, Union

from nodeagent.errors import BadRecording
from nodeagent.gpu.facts import NodeFacts
from nodeagent.gpu.plain import from_plain, to_plain

SCHEMA = "gpu-nodeagent/recording/1"


@dataclass(frozen=True)
class Header:
    """What a recording says of itself. `interval` is the seconds between two sweeps, as they were wished for."""

    version: str = ""
    node: str = ""
    interval: float = 10.0
    started: str = ""
    anonymous: bool = False


@dataclass(frozen=True)
class Recorded:
    """One sweep, at so many seconds after the beginning."""

    at: float
    facts: NodeFacts


@dataclass(frozen=True)
class Truth:
    """A fault that was there from `begin` to `end` (seconds after the beginning): what a replay is measured by."""

    unit: str
    fault: str
    begin: float
    end: float = inf

    def holds(self, at: float, grace: float = 0.0) -> bool:
        """Say whether the fault was there at that time."""
        return self.begin <= at <= self.end + grace


Entry = Union[Header, Recorded, Truth]


def line_of(entry: Entry) -> str:
    """Return an entry as its line, without the newline."""
    if isinstance(entry, Header):
        plain: dict[str, Any] = {"schema": SCHEMA, **vars(entry)}
    elif isinstance(entry, Recorded):
        plain = {"at": entry.at, "facts": to_plain(entry.facts)}
    else:
        end = None if entry.end == inf else entry.end
        plain = {"truth": {"unit": entry.unit, "fault": entry.fault, "from": entry.begin, "to": end}}
    return json.dumps(plain, separators=(",", ":"))


def read_recording(lines: Iterable[str], name: str) -> Iterator[Entry]:
    """Yield the entries of a recording, the header first; `name` is what errors call it.

    A last line that has no end was being written when the recorder died: it is passed over.

    Raises:
        BadRecording: a line that is no entry, or none of this format.

    """
    header: Header | None = None
    last: Recorded | None = None
    for number, line in enumerate(lines, 1):
        try:
            plain = json.loads(line, parse_constant=_no_number)
            if not isinstance(plain, Mapping):
                raise ValueError("is no object")
            if header is None:
                header = _header(plain)
                yield header
            elif "facts" in plain:
                last = _recorded(plain, last, header.interval)
                yield last
            elif "truth" in plain:
                yield _truth(plain["truth"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if header is not None and not line.endswith("\n"):
                return
            raise BadRecording(name, number, f"{type(error).__name__}: {error}") from error
    if header is None:
        raise BadRecording(name, 1, "it is empty")


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _header(plain: Mapping[str, Any]) -> Header:
    if plain.get("schema") != SCHEMA:
        raise ValueError(f"its schema is {str(plain.get('schema'))[:60]!r}, not {SCHEMA!r}")
    known = {field.name: plain[field.name] for field in fields(Header) if field.name in plain}
    header = Header(**known)
    return replace(header, node=str(header.node), version=str(header.version), interval=_seconds(header.interval))


def _recorded(plain: Mapping[str, Any], last: Recorded | None, interval: float) -> Recorded:
    facts = from_plain(NodeFacts, plain["facts"])
    if "at" in plain:
        at = _seconds(plain["at"])
    elif last is None:
        at = 0.0
    else:
        passed = facts.monotonic - last.facts.monotonic
        at = last.at + (passed if passed > 0 and facts.boot_id == last.facts.boot_id else interval)
    if last is not None and at < last.at:
        raise ValueError(f"at {at:g}: before the sweep at {last.at:g}")
    return Recorded(at, facts)


def _truth(plain: Mapping[str, Any]) -> Truth:
    end = plain.get("to")
    return Truth(
        str(plain["unit"]), str(plain["fault"]), _seconds(plain["from"]), inf if end is None else _seconds(end)
    )


def _seconds(plain: Any) -> float:
    if isinstance(plain, bool) or not isinstance(plain, (int, float)) or not 0 <= plain < inf:
        raise ValueError(f"{plain!r:.40} is no time")
    return float(plain)
