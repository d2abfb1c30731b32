"""`gpu-nodeagent replay FILE`: what this configuration would have made of a recording, and how right it was."""

from __future__ import annotations

import argparse
import gzip
import sys
import zlib
from collections.abc import Iterator
from typing import Any, TextIO, cast

from nodeagent.cli.context import loaded, print_json, table
from nodeagent.cli.main import STATE_EXIT, Exit, say
from nodeagent.errors import BadRecording
from nodeagent.replay.document import elapsed, replay_document
from nodeagent.replay.engine import replay
from nodeagent.replay.recording import Entry, Header, Recorded, Truth, read_recording
from nodeagent.replay.score import score
from nodeagent.replay.story import tell


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("file", metavar="FILE", help="what `check --record` wrote, also gzip'ed; - is standard input")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(options: argparse.Namespace) -> int:
    """Print the story.

    Exit with the last verdict's status as `check` does; where the recording tells the truth, 0 if every fault was found
    and nothing was taken out without one, else 2.
    """
    config = loaded(options).config
    truths: list[Truth] = []
    entries = _entries(options.file)
    header = cast(Header, next(entries))

    def sweeps() -> Iterator[Recorded]:
        for entry in entries:
            if isinstance(entry, Truth):
                truths.append(entry)
            elif isinstance(entry, Recorded):
                yield entry

    story = tell(replay(sweeps(), config, header.interval))
    known = score(story, truths, header.interval) if truths else None
    document = replay_document(header, story, known)
    if options.json:
        print_json(document)
    else:
        say(_text(document))
    if known is not None:
        return Exit.FAILED if known.missed or known.false_actions else Exit.OK
    return int(STATE_EXIT[document["verdict"]])


def _entries(name: str) -> Iterator[Entry]:
    """Yield what a file holds."""
    if name == "-":
        yield from read_recording(sys.stdin, "standard input")
        return
    with _opened(name) as file:
        try:
            yield from read_recording(file, name)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadRecording(name, 0, str(error)) from error


def _opened(name: str) -> TextIO:
    if name.endswith(".gz"):
        return cast(TextIO, gzip.open(name, "rt", encoding="utf-8", errors="replace"))
    return open(name, encoding="utf-8", errors="replace")


def _text(document: dict[str, Any]) -> str:
    boots = document["boots"]
    lines = [
        f"{document['node'] or 'a node'}: {document['sweeps']} sweeps in {elapsed(document['seconds'])}"
        + (f", {boots} boots" if boots > 1 else "")
    ]
    rows = [(entry["at"], _where(entry), _what(entry)) for entry in document["changes"] + document["decisions"]]
    if rows:
        lines.append(table([(elapsed(at), where, what) for at, where, what in sorted(rows, key=lambda row: row[0])]))
    lines.append(f"at the end: {document['verdict']}" + "".join(f"; {word}" for word in document["left"]))
    if document["score"] is not None:
        lines += _score(document["score"])
    return "\n".join(lines)


def _where(entry: dict[str, Any]) -> str:
    if not entry["unit"]:
        return "node"
    return str(entry["unit"]) if entry.get("index") is None else f"GPU {entry['index']}"


def _what(entry: dict[str, Any]) -> str:
    if "decision" in entry:
        return f"{entry['decision']}: {entry['why']}" if entry["why"] else str(entry["decision"])
    why = "; ".join(reason["evidence"] for reason in entry["reasons"])
    return f"{entry['from']} -> {entry['to']}" + (f": {why}" if why else "")


def _score(known: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("faults", f"{known['found']} of {known['faults']} found", _percent("recall", known["recall"])),
        ("alarms", f"{known['false_alarms']} of {known['alarms']} false", _percent("precision", known["precision"])),
        ("false alarms", _rate(known["false_alarms_a_node_day"]), f"{known['node_days']:.3f} node-days"),
        ("false drains", _rate(known["false_actions_a_node_day"]), "retired or drained without a fault"),
        ("delay", _seconds(known["delay_median_s"]), f"median; longest {_seconds(known['delay_longest_s'])}"),
    ]
    missed = [
        f"missed: {one['fault']} of {one['unit'] or 'the node'} at {elapsed(one['at'])}" for one in known["missed"]
    ]
    return [table(rows), *missed]


def _percent(name: str, share: float | None) -> str:
    return f"{name} " + ("-" if share is None else f"{share:.1%}")


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.2f} a node-day"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"
