"""How settings are declared: fields of frozen dataclasses that know their default and their reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any, TypeVar

T = TypeVar("T")


def setting(default: T, read: Callable[[Any], T], hook: bool = False) -> T:
    """Declare a setting: its default, the function that checks and converts a YAML value, whether hooks get it."""
    metadata = {"read": read, "hook": hook}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: Callable[[], T]) -> T:
    """Declare a part of the configuration that is a mapping of its own."""
    return field(default_factory=kind, metadata={"section": kind})
