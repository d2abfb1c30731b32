"""The site's own checks as the configuration describes them: one mapping of settings a check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from nodeagent.config import values

_SEVERITIES = ("info", "warning", "error")
_LONGEST_NAME = 64


@dataclass(frozen=True)
class SiteCheck:
    """A program that looks at the node and says by its exit status and its output what it found.

    `command` is an argument list with the program's absolute path, `user` whom it runs as (empty: the agent's own, root
    as a service). It is started each `interval`, counted from its last start, and ended after `timeout` (seconds); with
    `only_when_idle` only while no unit of the node is held. An exit status other than 0 is a finding of this `severity`
    that asks for `action`, about the `node`, or (`unit_from: text`) about the GPUs which the output names by UUID, bus
    id or `GPU N`.
    """

    command: tuple[str, ...]
    user: str = ""
    timeout: float = 60.0
    interval: float = 300.0
    only_when_idle: bool = False
    severity: str = "error"
    action: str = "none"
    unit_from: str = "node"


def command(value: Any) -> tuple[str, ...]:
    """An argument list that begins with an absolute path."""
    if not isinstance(value, list) or not value:
        raise ValueError("wants a list such as [/usr/sbin/nhc, -q]: there is no shell")
    if not all(isinstance(word, (str, int)) and not isinstance(word, bool) for word in value):
        raise ValueError("wants a list of texts")
    words = [str(word) for word in value]
    if any("\0" in word for word in words):
        raise ValueError("wants a list of texts without NUL")
    return (values.absolute_path(words[0]), *words[1:])


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "command": command,
    "user": values.name_or_empty,
    "timeout": values.positive_duration,
    "interval": values.positive_duration,
    "only_when_idle": values.boolean,
    "severity": values.one_of(*_SEVERITIES),
    "action": values.recovery_action,
    "unit_from": values.one_of("node", "text"),
}


def site_checks(value: Any) -> Mapping[str, SiteCheck]:
    """A mapping of names to checks."""
    if not isinstance(value, dict):
        raise ValueError("wants a mapping of names to checks")
    return {_name(name): _check(str(name), settings) for name, settings in value.items()}


def _name(value: Any) -> str:
    name = values.name(value)
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"{name[:20]}…: wants a name of at most {_LONGEST_NAME} characters")
    return name


def _check(name: str, settings: Any) -> SiteCheck:
    if isinstance(settings, SiteCheck):
        return settings
    if not isinstance(settings, dict):
        raise ValueError(f"{name}: wants a mapping with command: [/path, …]")
    unknown = sorted(set(map(str, settings)) - {field.name for field in fields(SiteCheck)})
    if unknown:
        raise ValueError(f"{name}: {unknown[0]}: unknown key; known here: {', '.join(_READERS)}")
    if "command" not in settings:
        raise ValueError(f"{name}: wants a command: [/path, …]")
    found = {}
    for key, value in settings.items():
        try:
            found[key] = _READERS[key](value)
        except ValueError as error:
            raise ValueError(f"{name}: {key}: {error}") from None
    return SiteCheck(**found)
