"""The probe process's event thread: XIDs as NVML has them. Lean, as worker.py is."""

from __future__ import annotations

import threading
import time

from nodeagent.gpu.nvml import Library, XidWatch
from nodeagent.gpu.output import Output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

WAIT_MS = 1000
"""How long the thread waits in NVML at a time: the most that a release waits for it."""


class Events:
    """The event thread: waits for XIDs of the GPUs that were registered and sends them at once."""

    def __init__(self, library: Library, output: Output) -> None:
        self._library = library
        self._output = output
        self._watch: XidWatch | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def register(self, handle: Any, uuid: str) -> None:
        """Watch this GPU too; where the watch or its thread has failed, begin a new one."""
        ended = self._thread is not None and not self._thread.is_alive()
        if ended or (self._watch is not None and self._watch.failed):
            self.stop()
        if self._watch is None:
            self._watch = XidWatch(self._library)
        self._watch.register(handle, uuid)

    def start(self) -> None:
        """Let the thread wait for the events of the GPUs registered so far."""
        if self._thread is None and self._watch is not None and not self._watch.failed:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._watch, self._stop), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread and free the event set; without the thread's consent the set is left alone."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * WAIT_MS / 1000)
        if self._watch is not None and (self._thread is None or not self._thread.is_alive()):
            self._watch.close()
        self._watch = self._thread = None

    def _run(self, watch: XidWatch, stop: threading.Event) -> None:
        while not stop.is_set() and not watch.failed:
            seen = watch.wait(WAIT_MS)
            if seen is not None:
                uuid, xid, gi, ci = seen
                event = {"uuid": uuid, "xid": xid, "gpu_instance": gi, "compute_instance": ci}
                self._output.send(xid={**event, "monotonic": time.monotonic()})
