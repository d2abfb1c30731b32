"""The site's rules for what is done about a fault, and the commands that they may run."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nodeagent.config import values
from nodeagent.config.check_names import OWN_CHECKS, SITE_PREFIX
from nodeagent.config.programs import command, programs

TELL, RETIRE, DRAIN = "tell", "retire", "drain"
DEEDS = (TELL, RETIRE, DRAIN)
"""What can be done about a fault, from the mildest to the gravest."""
NOW, IDLE = "now", "idle"
_SEVERITIES = ("info", "warning", "unknown", "error")


@dataclass(frozen=True)
class SiteCommand:
    """A program of the site's that a rule runs: an argument list with its absolute path, without a shell.

    It runs as `user` (empty: the agent's own, root as a service), reads on standard input what happened, as one JSON
    object, and is ended with all that it started after `timeout` (seconds).
    """

    command: tuple[str, ...]
    user: str = ""
    timeout: float = 30.0


@dataclass(frozen=True)
class Rule:
    """What is done about the findings that fit it. A finding goes by the first rule of the list that it fits.

    That is so if it is of one of these checks (`check`, empty: of any), as grave as `severity` or graver, asks for one
    of these recovery actions (`action`, empty: any) and is on a GPU of that `model` (empty: any), and if at least
    `units_at_least` GPUs of the node have a finding that fits so far (0: not asked). With `model` or `units_at_least`
    a rule is about GPUs, never about the node as a whole.

    `do` is tell, retire or drain; empty leaves that to the policy's words for recovery actions. `run` names one of
    `policy.commands`. `drain_when` says when a drain that follows is made: now, or once the node is idle (empty: as
    `policy.drain_when` has it).
    """

    check: tuple[str, ...] = ()
    severity: str = "error"
    model: str = ""
    units_at_least: int = 0
    action: tuple[str, ...] = ()
    do: str = ""
    run: str = ""
    drain_when: str = ""


def _one_or_more(read: Callable[[Any], str]) -> Callable[[Any], tuple[str, ...]]:
    """Return a reader of one word or of a list of them, not empty."""

    def several(value: Any) -> tuple[str, ...]:
        items = value if isinstance(value, list) else [value]
        if not items:
            raise ValueError("wants a word, or a list of words")
        return tuple(read(item) for item in items)

    return several


_RULE: Mapping[str, Callable[[Any], Any]] = {
    "check": _one_or_more(values.name),
    "severity": values.one_of(*_SEVERITIES),
    "model": values.model_pattern,
    "units_at_least": values.positive_count,
    "action": _one_or_more(values.recovery_action),
    "do": values.one_of(*DEEDS),
    "run": values.name,
    "drain_when": values.one_of(NOW, IDLE),
}
_COMMAND: Mapping[str, Callable[[Any], Any]] = {
    "command": command,
    "user": values.name_or_empty,
    "timeout": values.positive_duration,
}


def rule(value: Any) -> Rule:
    """One rule."""
    found = Rule(**values.described(value, _RULE, "check: …, do: …"))
    if not (found.do or found.run or found.drain_when):
        raise ValueError("wants do, run or drain_when: else it does nothing")
    if found.do == TELL and found.drain_when:
        raise ValueError("drain_when: with do: tell nothing is drained")
    return found


rules = values.listing(rule)
site_commands = programs("commands", SiteCommand, _COMMAND)


def unresolved(
    rules_: Collection[Rule], commands: Collection[str], site_checks: Collection[str]
) -> Iterator[tuple[int, str]]:
    """Yield what rules name and nobody has: the rule's number, from 1, and the words."""
    checks = [*OWN_CHECKS, *(f"{SITE_PREFIX}{name}" for name in site_checks)]
    for number, one in enumerate(rules_, 1):
        for name in one.check:
            if name not in checks:
                yield number, f"check: {name!r} is no check; {_nearest(name, checks)}"
        if one.run and one.run not in commands:
            yield number, f"run: {one.run!r} is none of policy.commands; {_nearest(one.run, commands)}"


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known)) or 'none'}"
