"""Drains and resumes one node of Slurm in one conversation with `scontrol`: a look, the change, another look.

Slurm has no operation that drains a node only if nobody else has: `scontrol update` overwrites a reason that stands.
A program that is running already needs less time between the look and the change than two programs do, and somebody
else's reason can be lost in that time only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager

from nodeagent.errors import CommandFailed, NodeTaken
from nodeagent.scheduler.command import Asked
from nodeagent.scheduler.port import NodeState

PROMPT = "scontrol: "
WIDE = {"COLUMNS": "4096"}
"""So that scontrol's line editor echoes a line as it was given."""
OUT = ("drain", "down", "fail", "reboot")
"""Words of states in which a node takes no job and a reason stands."""

_STATE = re.compile(r"^   State=(\S+)", re.MULTILINE)
_REASON = re.compile(r"^   Reason=(.*?) \[[^\]\s]+@[^\]\s]+\]$", re.MULTILINE | re.DOTALL)

Talk = Callable[[], AbstractContextManager[Asked]]


def drain(talk: Talk, node: str, reason: str, put_back: Callable[[str], object]) -> None:
    """Drain the node unless somebody else has. `put_back` drains it with a reason that was overwritten.

    The last look and the change are given to scontrol at once: nothing is between them but the way to the controller.
    So that look tells too late that somebody was there, and their words are put back.

    Raises:
        NodeTaken: somebody else had, or did at that moment: their reason stands.
        CommandFailed: it may be drained or not.

    """
    look = f"show node {node}"
    with talk() as scontrol:
        scontrol.ask(look)  # the first one loads what the program needs for it: ten times as long as the next
        _free(_node(scontrol, scontrol.ask(look)[0]))
        seen, _, found = scontrol.ask(look, f'update nodename={node} state=drain reason="{quotable(reason)}"', look)
        before, after = _node(scontrol, seen), _node(scontrol, found)
        if after.drained and not after.foreign and _is_taken(before):
            put_back(before.reason or "")
        _free(before)
        _free(after)
        if not after.drained:
            raise CommandFailed(("scontrol", "update", f"nodename={node}", "state=drain"), 1, scontrol.complaints())


def resume(talk: Talk, node: str, put_back: Callable[[str], object]) -> None:
    """Give the node back if the reason that stands is ours. `put_back`: see `drain`.

    Since some release after 22.05 a reason outlives its drain unless it is said to be none.

    Raises:
        NodeTaken: it is not, or was exchanged at that moment: their reason stands.
        CommandFailed: it may be resumed or not.

    """
    look = f"show node {node}"
    with talk() as scontrol:
        scontrol.ask(look)
        first = _node(scontrol, scontrol.ask(look)[0])
        _free(first)
        if not first.drained:
            return
        seen, _, found = scontrol.ask(look, f"update nodename={node} state=resume reason=none", look)
        before, after = _node(scontrol, seen), _node(scontrol, found)
        if not after.drained and _is_taken(before):
            put_back(before.reason or "")
        _free(before)
        if after.drained and not after.foreign:
            raise CommandFailed(("scontrol", "update", f"nodename={node}", "state=resume"), 1, scontrol.complaints())


def quotable(reason: str) -> str:
    """Return a reason as it can stand between double quotes on one line."""
    return " ".join(reason.replace('"', "'").split())


def _is_taken(state: NodeState) -> bool:
    return state.drained and (state.foreign or not state.reason)


def _free(state: NodeState) -> None:
    if _is_taken(state):
        raise NodeTaken(state.reason or "")


def _node(scontrol: Asked, said: str) -> NodeState:
    state, reason = _STATE.search(said), _REASON.search(said)
    if state is None:
        raise CommandFailed(("scontrol", "show", "node"), 1, scontrol.complaints() or said)
    return NodeState(any(word in state[1].lower() for word in OUT), reason[1] if reason else "")
