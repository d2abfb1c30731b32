"""`check --record`: looks at the GPUs for a while and writes down what was read, as it was read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import sleep, time

from nodeagent.clock import SystemClock
from nodeagent.config.model import Config
from nodeagent.config.values import positive_duration
from nodeagent.errors import BadRequest
from nodeagent.gpu.facts import NodeFacts
from nodeagent.replay.anonymous import Anonymous
from nodeagent.replay.recording import Header, Recorded, line_of
from nodeagent.report import iso
from nodeagent.scheduler.registry import node_name
from nodeagent.version import VERSION


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("--record", type=Path, metavar="FILE", help="write what was read, for `replay`; a new file")
    parser.add_argument(
        "--for", dest="duration", type=_duration, metavar="TIME", help="look for so long (1h), not once"
    )
    parser.add_argument("--interval", type=_duration, metavar="TIME", help="time between two looks (the agent's)")
    parser.add_argument("--anonymize", action="store_true", help="replace UUIDs, serial numbers and the node's name")


def _duration(word: str) -> float:
    try:
        return positive_duration(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{word!r} {error}") from error


@dataclass(frozen=True)
class Wish:
    """What is to be recorded: into a file that does not exist, for how long, how often; `duration` 0: once."""

    path: Path
    duration: float
    interval: float
    anonymize: bool


def wish_of(options: argparse.Namespace, config: Config) -> Wish | None:
    """Return what the command line asks for; None for nothing.

    Raises:
        BadRequest: an option that makes no sense without --record.

    """
    if options.record is None:
        for option in ("duration", "interval", "anonymize"):
            if getattr(options, option):
                raise BadRequest(
                    f"--{option.replace('duration', 'for')}", str(getattr(options, option)), "of use without --record"
                )
        return None
    return Wish(options.record, options.duration or 0.0, options.interval or config.interval, options.anonymize)


def record(read: Callable[[], NodeFacts], config: Config, wish: Wish) -> Iterator[NodeFacts]:
    """Yield each sweep, as read, once it is written; the file is whole after each line, whatever ends us."""
    hidden = Anonymous() if wish.anonymize else None
    header = Header(VERSION, node_name(config), wish.interval, iso(time()))
    if hidden is not None:
        header = replace(header, node="node", started="", anonymous=True)
    clock = SystemClock()
    with wish.path.open("x", encoding="utf-8") as file:
        file.write(f"{line_of(header)}\n")
        begun = clock.monotonic()
        due = 0.0
        while due <= wish.duration:
            sleep(max(0.0, begun + due - clock.monotonic()))
            at = clock.monotonic() - begun
            facts = read()
            file.write(f"{line_of(Recorded(round(at, 3), hidden.facts(facts) if hidden else facts))}\n")
            file.flush()
            yield facts
            due = max(due + wish.interval, clock.monotonic() - begun)  # after a look that took long, at once
