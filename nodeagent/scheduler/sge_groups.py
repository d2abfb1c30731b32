"""Grid Engine's host groups: which ones a host is in, asked once an hour at most."""

from __future__ import annotations

import time
from collections.abc import Callable

from nodeagent.errors import CommandFailed

_HOUR = 3600.0


class Groups:
    """The host groups of a cell. One command, and one for each group: too many for a time when all hosts ask."""

    def __init__(self, qconf: Callable[..., str], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._qconf = qconf
        self._monotonic = monotonic
        self._known: dict[str, set[str]] = {}
        self._asked = float("-inf")

    def of(self, host: str) -> dict[str, set[str]]:
        """Return group → hosts of it, those of its groups included, for the groups that have this host."""
        now = self._monotonic()
        if now - self._asked > _HOUR:
            self._known = {name: set(self._qconf("-shgrp_resolved", name).split()) for name in self._names()}
            self._asked = now
        return {name: hosts for name, hosts in self._known.items() if host in hosts}

    def _names(self) -> list[str]:
        try:
            return self._qconf("-shgrpl").split()
        except CommandFailed as error:
            if "no host group list defined" in error.output:
                return []
            raise
