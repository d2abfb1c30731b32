"""The site's own checks as the configuration describes them: one mapping of settings a check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nodeagent.config import values
from nodeagent.config.programs import command, programs

_SEVERITIES = ("info", "warning", "error")


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


site_checks = programs("checks", SiteCheck, _READERS)
