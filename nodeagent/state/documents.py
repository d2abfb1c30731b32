"""JSON documents in the state directory, for the agent and the command (hooks read none): `format=1`, then one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nodeagent.errors import UnknownFormat
from nodeagent.state.files import FORMAT_LINE, Directory, decode_lines

SNAPSHOT = "snapshot"
MEMORY = "memory"


def write_document(state: Directory, name: str, document: Mapping[str, Any]) -> None:
    """Replace a document."""
    state.replace(name, f"{FORMAT_LINE}\n{json.dumps(document, separators=(',', ':'))}\n")


def read_document(state: Directory, name: str) -> dict[str, Any] | None:
    """Return a document, None if there is none.

    Raises:
        UnknownFormat, UntrustedFile: there is one that cannot be read or believed.

    """
    try:
        text = state.read(name)
    except FileNotFoundError:
        return None
    try:
        found = json.loads("\n".join(decode_lines(name, text)))
    except ValueError as error:
        raise UnknownFormat(name, str(error)) from error
    if not isinstance(found, dict):
        raise UnknownFormat(name, "no JSON object")
    return found
