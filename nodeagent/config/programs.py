"""Programs of the site's in the configuration, each with a name: argument lists, for there is no shell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nodeagent.config import values

T = TypeVar("T")

_LONGEST_NAME = 64
_EXAMPLE = "command: [/path, …]"


def command(value: Any) -> tuple[str, ...]:
    """An argument list that begins with an absolute path."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError("wants a list such as [/usr/sbin/nhc, -q]: there is no shell")
    if not all(isinstance(word, (str, int)) and not isinstance(word, bool) for word in value):
        raise ValueError("wants a list of texts")
    words = [str(word) for word in value]
    if any("\0" in word for word in words):
        raise ValueError("wants a list of texts without NUL")
    return (values.absolute_path(words[0]), *words[1:])


def programs(
    what: str, kind: Callable[..., T], readers: Mapping[str, Callable[[Any], Any]]
) -> Callable[[Any], Mapping[str, T]]:
    """Return a reader of a mapping of names to programs.

    `readers` has one for each setting of a program; each of these but `command` has a default in `kind`.
    """

    def one(name: str, settings: Any) -> T:
        try:
            found = values.described(settings, readers, _EXAMPLE)
            if "command" not in found:
                raise ValueError(f"wants a {_EXAMPLE}")
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        return kind(**found)

    def read(value: Any) -> Mapping[str, T]:
        if not isinstance(value, dict):
            raise ValueError(f"wants a mapping of names to {what}")
        return {_name(name): one(str(name), settings) for name, settings in value.items()}

    return read


def _name(value: Any) -> str:
    name = values.name(value)
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"{name[:20]}…: wants a name of at most {_LONGEST_NAME} characters")
    return name
