"""What the probe process says to its parent: JSON, one object a line. Lean, as worker.py is."""

from __future__ import annotations

import json
import os
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_encode = json.JSONEncoder(separators=(",", ":")).encode


class Output:
    """Lines to the parent, whole ones, from any thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._held = b""

    def send(self, **message: Any) -> None:
        """Send one message, and before it what is held back; ends the process if nobody listens any more."""
        line = _encode(message).encode() + b"\n"
        with self._lock:
            line, self._held = self._held + line, b""
            while line:
                try:
                    line = line[os.write(self._fd, line) :]
                except BrokenPipeError:
                    os._exit(0)

    def hold(self, **message: Any) -> None:
        """Send a message with the next one: for what no call of NVML's stands between. Waking the parent costs us."""
        line = _encode(message).encode() + b"\n"
        with self._lock:
            self._held += line
