"""`python -m tests.make_docs` writes docs/checks.md from the registry of checks: what each module says of itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from nodeagent.config.load import flatten
from nodeagent.config.model import Health
from nodeagent.health.checks import CHECKS, Check

PAGE = Path(__file__).resolve().parents[1] / "docs" / "checks.md"
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


def page(checks: Mapping[str, Check]) -> str:
    """Return the page."""
    return "\n".join([HEAD, *_checks(checks), *_settings()]) + "\n"


def _checks(checks: Mapping[str, Check]) -> Iterator[str]:
    for check, find in checks.items():
        said = parts_of(check, sys.modules[find.__module__].__doc__ or "")
        yield f"## {check}\n\n{said[''][:1].upper()}{said[''][1:]}\n\n| | |\n|---|---|"
        for part in PARTS:
            yield f"| {part} | {said[part].replace('|', chr(92) + '|')} |"
        yield ""


def _settings() -> Iterator[str]:
    yield "## Settings\n\nOf the section `health`, with their defaults; `config.yaml` says more of each."
    yield "\n| | |\n|---|---|"
    for key, value in flatten(Health()):
        shown = list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
        yield f"| `health.{key}` | `{shown:.15g}` |" if isinstance(value, float) else f"| `health.{key}` | `{shown}` |"


if __name__ == "__main__":
    PAGE.write_text(page(CHECKS), encoding="utf-8")
