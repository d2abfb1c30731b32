"""The reason of a drain of ours: one line, made here and read here, so that a later release knows it again. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIX = "gpu-nodeagent/1: "
LONGEST = 400
"""Characters of a reason: what does not fit is cut out of the middle, never off its ends, which are read again."""

_OURS = re.compile(r"gpu-nodeagent/\d+: ")
_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
_NEEDS = re.compile(
    rf"{re.escape(PREFIX)}(?P<words>.*?)(?:; since (?P<since>{_TIME}))?; needs (?P<action>\w+)", re.DOTALL
)
_HOST = re.compile(r"on (?P<host>[\w.-]+): ")


@dataclass(frozen=True)
class Reason:
    """What a reason says: on which host, `words` about the faults, since when (UTC, ISO 8601), what it needs.

    `action` is the word of a recovery action. `host` and `since` are empty where the reason does not tell them.
    """

    words: str
    action: str
    host: str = ""
    since: str = ""


def is_ours(text: str | None) -> bool:
    """Say whether this product wrote it, in this version of the format or in any other."""
    return _OURS.match(text or "") is not None


def compose(reason: Reason) -> str:
    """Return the line, no longer than LONGEST."""
    head = PREFIX + (f"on {reason.host}: " if reason.host else "")
    tail = (f"; since {reason.since}" if reason.since else "") + f"; needs {reason.action}"
    words = " ".join(reason.words.split())
    room = LONGEST - len(head) - len(tail)
    return head + (words if len(words) <= room else words[: room - 2].rstrip("; ") + " …") + tail


def parse(text: str) -> Reason | None:
    """Return what a reason says that the agent itself wrote; None for anybody else's, or another version's.

    An administrator's (`gpu-nodeagent drain`) does not end in what it needs: it is ours, and not the agent's. With a
    word of anybody's behind its end it is theirs.
    """
    found = _NEEDS.fullmatch(text)
    if found is None:
        return None
    words = found["words"]
    host = _HOST.match(words)
    return Reason(
        words[host.end() :] if host else words, found["action"], host["host"] if host else "", found["since"] or ""
    )
