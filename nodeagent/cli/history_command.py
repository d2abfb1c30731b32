"""`gpu-nodeagent history [GPU]`: what became of this node's GPUs, oldest first. For root: see history/place.py."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from datetime import datetime

from nodeagent.cli.context import loaded, print_json, table, unit_named
from nodeagent.cli.main import Exit, say
from nodeagent.config import values
from nodeagent.config.model import Config
from nodeagent.errors import BadRequest, UnitUnknown
from nodeagent.history.entry import AGENT, HISTORY, KINDS, VERDICT, XID, Entry
from nodeagent.history.reader import read
from nodeagent.report import history_document, iso
from nodeagent.scheduler.registry import node_name

_LONGEST_INDEX = 4


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("gpu", nargs="?", default="", metavar="GPU", help="UUID, index, bus id or serial; all of them")
    parser.add_argument("--since", default="", metavar="TIME", help="2h, 7d, 2026-11-20 or 2026-11-20T14:00 (local)")
    parser.add_argument("--kind", action="append", choices=KINDS, default=[], help="only these; may be repeated")
    parser.add_argument("--last", type=int, metavar="N", help="only the newest N")
    parser.add_argument("--json", action="store_true", help="one JSON object, with the facts that led to each verdict")


def run(options: argparse.Namespace) -> int:
    """Print what is known; exit 0, 69 where there is no history that can be read."""
    config = loaded(options).config
    since = moment(options.since, time.time()) if options.since else 0.0
    if options.last is not None and options.last < 1:
        raise BadRequest("--last", str(options.last), "a number of 1 or more")
    gpu = _named(config, options.gpu) if options.gpu else ""
    entries = read(config.data_dir, gpu, since, options.kind, options.last)
    if options.json:
        print_json(history_document(node_name(config), entries))
    else:
        say(text(entries))
    return Exit.OK


def moment(words: str, now: float) -> float:
    """Return the wall time that is meant: so long ago, or a date, with or without a time of day.

    Raises:
        BadRequest: it is neither.

    """
    try:
        return now - values.duration(words)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(words.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise BadRequest("--since", words, "a time such as 2h, 7d, 2026-11-20 or 2026-11-20T14:00") from error


def _named(config: Config, name: str) -> str:
    """Return the UUID of a GPU that is there now; another name may be one of a GPU that was there once."""
    try:
        return unit_named(config, name)
    except UnitUnknown:
        if len(name) < _LONGEST_INDEX:  # an index of nothing, or a beginning that all UUIDs share
            raise
        return name


def text(entries: list[Entry]) -> str:
    """Return entries as lines for a person."""
    if not entries:
        return "nothing is recorded"
    places = {entry.unit: _place(entry) for entry in entries if entry.bus_id}
    return table([("TIME", "GPU", "KIND", "WHAT", "BY", "WHY"), *(_row(entry, places) for entry in entries)])


def _place(entry: Entry) -> str:
    return f"{'-' if entry.index is None else entry.index} {entry.bus_id}"


def _row(entry: Entry, places: Mapping[str, str]) -> tuple[str, ...]:
    if entry.kind == XID:
        what = entry.check + (f" x{entry.count}" if entry.count > 1 else "")
    elif entry.kind == VERDICT and entry.before and entry.before != entry.after:
        what = f"{entry.before} -> {entry.after}"
    else:
        what = entry.after
    where = places.get(entry.unit, entry.unit)
    if not where and entry.kind not in (AGENT, HISTORY):
        where = "node" if entry.kind != XID else "?"
    cells = (iso(entry.at), where, entry.kind, what, entry.by, entry.evidence)
    return tuple(_printable(cell) or "-" for cell in cells)


def _printable(words: str) -> str:
    """Return a text that leaves the terminal as it is: parts of it may be of a job's making."""
    return "".join(c if c.isprintable() else "?" for c in words)
