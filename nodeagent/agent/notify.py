"""The agent's word to systemd (sd_notify), behind one seam: outside a unit nothing is said."""

from __future__ import annotations

import os
from collections.abc import Callable

try:
    from systemd.daemon import notify as _sd_notify
except ImportError:  # the demo on a machine without libsystemd's headers
    _sd_notify = None


class Notifier:
    """Says READY, RELOADING, STOPPING, STATUS and WATCHDOG to whoever listens on NOTIFY_SOCKET."""

    def __init__(self, send: Callable[[str], object] | None = _sd_notify) -> None:
        self._send = send if "NOTIFY_SOCKET" in os.environ else None
        usec = os.environ.get("WATCHDOG_USEC", "")
        self.watchdog_interval: float | None = int(usec) / 2e6 if usec.isdigit() and int(usec) else None
        """Seconds between two signs of life; None where nobody waits for them."""

    def _say(self, words: str) -> None:
        if self._send is not None:
            self._send(words)

    def ready(self, status: str) -> None:
        """Say that the first verdict stands."""
        self._say(f"READY=1\nSTATUS={status}")

    def status(self, words: str) -> None:
        """Say how things are, for `systemctl status`."""
        self._say(f"STATUS={words}")

    def reloading(self, monotonic: float) -> None:
        """Say that the configuration is being read again."""
        self._say(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic * 1e6)}")

    def alive(self) -> None:
        """Give the watchdog its sign of life."""
        self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the end is intended."""
        self._say("STOPPING=1")
