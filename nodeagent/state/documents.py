"""JSON documents in the state directory, for the agent and the command (hooks read none): `format=1`, then one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nodeagent.errors import UnknownFormat, UntrustedFile
from nodeagent.state.files import FORMAT_LINE, Directory, decode_lines

SNAPSHOT = "snapshot"
MEMORY = "memory"


def write_document(state: Directory, name: str, document: Mapping[str, Any]) -> None:
    """Replace a document."""
    state.replace(name, f"{FORMAT_LINE}\n{json.dumps(document, separators=(',', ':'))}\n")


def read_document(state: Directory, name: str) -> dict[str, Any] | None:
    """Return a document, or None if there is none that can be read and trusted."""
    try:
        found = json.loads("\n".join(decode_lines(name, state.read(name))))
    except (OSError, UnknownFormat, UntrustedFile, ValueError):
        return None
    return found if isinstance(found, dict) else None
