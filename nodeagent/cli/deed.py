"""What every command that changes something has: --dry-run and --json, and how its answer is given."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nodeagent.cli.context import print_json
from nodeagent.cli.login import login
from nodeagent.cli.main import Exit, complain, say
from nodeagent.report import schema

CHANGED_NOTHING = "nothing was changed"


@dataclass
class Deed:
    """What was done, or with `dry_run` would be.

    `gpu` is the GPU as `status` has it, empty for the node. `told` are the scheduler's commands, word for word,
    `refused` is why it is not done (empty: it is), `status` the exit status then. `lines` are for people.
    """

    deed: str
    node: str
    dry_run: bool = False
    gpu: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    refused: str = ""
    status: int = Exit.DEGRADED
    told: Sequence[tuple[str, ...]] = ()
    lines: list[str] = field(default_factory=list)

    def add(self, *lines: str) -> None:
        """Say more."""
        self.lines += lines


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe what such commands have in common."""
    parser.add_argument("--dry-run", action="store_true", help="change nothing; say exactly what it would do")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def command_line(argv: Sequence[str]) -> str:
    """Return a command as a person would type it."""
    return shlex.join(argv)


def answer(deed: Deed, as_json: bool) -> int:
    """Print what was done, or would be, and return the exit status."""
    if as_json:
        print_json(
            {
                **schema("deed"),
                "deed": deed.deed,
                "dry_run": deed.dry_run,
                "done": not deed.dry_run and not deed.refused,
                "refused": deed.refused or None,
                "node": deed.node,
                "gpu": deed.gpu or None,
                "by": login(),
                "reason": deed.reason or None,
                "told": [list(argv) for argv in deed.told],
                "lines": deed.lines,
            }
        )
    else:
        for line in deed.lines:
            say(line)
        if deed.refused:
            complain(f"{'would be refused: ' if deed.dry_run else ''}{deed.refused}")
        if deed.dry_run:
            say(CHANGED_NOTHING)
    return deed.status if deed.refused else Exit.OK
