"""Without a GPU nothing here is collected, so there is nothing to skip; tests/conftest.py says so at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hardware.place import Nowhere, Place, place

FACTS = "hardware.json"
_HERE = place()
_FACTS: dict[str, Any] = {}

collect_ignore_glob = ["test_*.py"] if isinstance(_HERE, Nowhere) else []


@pytest.fixture(scope="session")
def here() -> Place:
    """The node."""
    assert isinstance(_HERE, Place)
    return _HERE


@pytest.fixture(scope="session")
def facts() -> Iterator[dict[str, Any]]:
    """What was measured: left as hardware.json in the directory `$OUT`, printed where there is none."""
    yield _FACTS
    if out := os.environ.get("OUT"):
        (Path(out) / FACTS).write_text(json.dumps(_FACTS, indent=1) + "\n", encoding="utf-8")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the facts where there is no place for them."""
    if _FACTS and not os.environ.get("OUT"):
        terminalreporter.write_line(json.dumps(_FACTS, indent=1))
