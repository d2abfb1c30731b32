"""`python -m tests.make_docs` writes docs/checks.md from the registry of checks: what each module says of itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from nodeagent.config.load import flatten
from nodeagent.config.model import Health
from nodeagent.health.checks import CHECKS, Check
from nodeagent.health.rules import AT_ONCE

PAGE = Path(__file__).resolve().parents[1] / "docs" / "checks.md"
RULES = ("strikes", "default_strikes", "dwell", "recover", "recover_after")
PARTS = ("Source", "Threshold", "Severity", "Action", "Clears")
HEAD = """# Health checks

Made by `make docs` from what each module in `nodeagent/health/checks/` says of itself; `gpu-nodeagent check` shows what
they find. ERROR fails a GPU (or the node), WARNING degrades it, UNKNOWN says that it could not be judged, INFO is told
and changes nothing. What is done about it is `policy`'s. A finding counts once it has stood for `health.strikes`
readings, and is taken back after `health.recover` clean ones. A check that is in the way of a site is given a limit
that suits, or more strikes.
"""


class BadDocstring(Exception):
    """A check's module does not say what the page needs."""


def parts_of(check: str, doc: str) -> Mapping[str, str]:
    """Return what a module's docstring says, by part; `` is its first line. Raises BadDocstring."""
    first, _, rest = doc.partition("\n\n")
    name, _, meaning = " ".join(first.split()).partition(": ")
    pieces = re.split(rf"^({'|'.join(PARTS)})(?: \([^)]*\))?: ", rest, flags=re.MULTILINE)
    found = {part: " ".join(text.split()) for part, text in zip(pieces[1::2], pieces[2::2])}
    if (
        name not in (check, f"{check}-NAME")
        or tuple(pieces[1::2]) != PARTS
        or not all(found.values())
        or pieces[0].strip()
    ):
        raise BadDocstring(check, tuple(found))
    return {"": meaning, **found}


def tuning(check: str, said: Mapping[str, str]) -> str:
    """Return how a check is tuned: the settings that its words name, then its rules. Raises BadDocstring.

    A setting is named as `health.PART.NAME`, or as `…NAME` after another one of the same part.
    """
    known = dict(flatten(Health()))
    named: list[str] = []
    for short, key in re.findall(r"`(…|health\.)([a-z_.]+)`", " ".join(said.values())):
        beside = [f"{other.rpartition('.')[0]}.{key}" for other in reversed(named)] if short == "…" else [key]
        found = next((one for one in beside if one in known), None)
        if found is None:
            raise BadDocstring(check, key)
        named.append(found)
    own = [key for key in dict.fromkeys(named) if key not in RULES]
    if check in AT_ONCE:
        return ", ".join(f"`health.{key}` ({_shown(known[key])})" for key in own)
    strikes = Health().strikes.get(check, Health().default_strikes)
    rules = f"`health.strikes` ({strikes}), `health.dwell` (0) and `health.recover_after` (0) for `{check}`"
    return ", ".join([*(f"`health.{key}` ({_shown(known[key])})" for key in own), rules])


def page(checks: Mapping[str, Check]) -> str:
    """Return the page."""
    return "\n".join([HEAD, *_checks(checks), *_settings()]) + "\n"


def _checks(checks: Mapping[str, Check]) -> Iterator[str]:
    for check, find in checks.items():
        said = parts_of(check, sys.modules[find.__module__].__doc__ or "")
        yield f"## {check}\n\n{said[''][:1].upper()}{said[''][1:]}\n\n| | |\n|---|---|"
        for part, text in (*((part, said[part]) for part in PARTS), ("Tune", tuning(check, said))):
            yield f"| {part} | {text.replace('|', chr(92) + '|')} |"
        yield ""


def _settings() -> Iterator[str]:
    yield "## Settings\n\nOf the section `health`, with their defaults; `config.yaml` says more of each."
    yield "\n| | |\n|---|---|"
    for key, value in flatten(Health()):
        yield f"| `health.{key}` | `{_shown(value)}` |"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.15g}"
    return str(list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value)


if __name__ == "__main__":
    PAGE.write_text(page(CHECKS), encoding="utf-8")
