"""The thread that writes history: what it cannot write now waits in a bounded queue, what does not fit is counted."""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from threading import Condition, Thread
from typing import Any

from nodeagent.errors import NodeAgentError
from nodeagent.history.entry import HISTORY, Entry, Keeping
from nodeagent.history.store import Store

MOST_WAITING = 1000
RETRY = 30.0
TIDY = 3600.0
_BATCH = 32
_PATIENCE = 2.0


class Writer:
    """A History on a disk.

    Args:
        open_store: opens the database; called in the thread, again after whatever failed.
        max_age: seconds for which entries are kept.
        max_size: bytes that history may take.
        log: the agent's log.
        retry: seconds between two tries while it cannot be written.

    """

    def __init__(
        self, open_store: Callable[[], Store], max_age: float, max_size: int, log: Any, retry: float = RETRY
    ) -> None:
        self.max_age = max_age
        self.max_size = max_size
        self._open = open_store
        self._log = log
        self._retry = retry
        self._queue: deque[Entry] = deque()
        self._changed = Condition()
        self._stop = False
        self._dropped = 0
        self._untold = 0
        self._problem = ""
        self._size: int | None = None
        self._store: Store | None = None
        self._thread = Thread(target=self._run, name="history", daemon=True)

    def start(self) -> None:
        """Open the database and begin to write, in a thread of its own."""
        self._thread.start()

    def record(self, entry: Entry) -> None:
        """See History: never waits but for the other thread to take what is in the queue."""
        with self._changed:
            if len(self._queue) >= MOST_WAITING:
                self._dropped += 1
                self._untold += 1
                first = self._untold == 1
            else:
                self._queue.append(entry)
                self._changed.notify()
                first = False
        if first:
            self._log.error("history_dropped", why=self._problem or "it cannot be written as fast as it comes")

    def keeping(self) -> Keeping:
        """See History."""
        return Keeping(self._problem, self._dropped, self._size)

    def close(self) -> None:
        """See History: what a disk does not take in two seconds is lost."""
        with self._changed:
            self._stop = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)
        if self._queue:
            self._log.error("history_dropped", why=self._problem or "no time left", entries=len(self._queue))

    # -- in the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = 0.0
        while True:
            with self._changed:
                if pause and not self._stop:
                    self._changed.wait_for(lambda: self._stop, pause)
                elif not self._queue and not self._stop and self._store is not None:
                    self._changed.wait(TIDY)
                stopping = self._stop
            try:
                self._work()
                pause = 0.0
            except (NodeAgentError, sqlite3.Error, OSError) as error:
                self._failed(str(error))
                pause = self._retry
            except Exception as error:  # noqa: BLE001  the thread's boundary: a bug of ours costs no history for ever
                self._failed(repr(error))
                pause = self._retry
            if stopping and (pause or not self._queue):
                break
        self._let_go()

    def _work(self) -> None:
        """Write one batch, and keep the bounds."""
        if self._store is None or not self._store.is_there():
            self._let_go()
            self._store = self._open()
            if self._store.moved:
                self._log.error("history_damaged", why=self._store.moved, note="moved aside, a new one is begun")
                self._store.add([self._own(f"what was kept before is in {self._store.path}.damaged")])
        with self._changed:
            batch = list(islice(self._queue, _BATCH))
        if batch:
            lost = self._store.add(batch)
            with self._changed:
                for _ in batch:
                    self._queue.popleft()
                self._dropped += lost
        self._store.prune(time.time(), self.max_age, self.max_size)
        self._size = self._store.size()
        self._well()

    def _well(self) -> None:
        """Say that it is written again, and keep how much was lost meanwhile."""
        if self._problem:
            self._problem = ""
            self._log.warning("history_resumed")
        if self._untold and self._store is not None and not self._queue:
            told = self._untold
            self._store.add([self._own(f"{told} entries before this one were lost")])
            with self._changed:
                self._untold -= told

    def _failed(self, why: str) -> None:
        self._let_go()
        if why != self._problem:
            note = f"the agent goes on; {MOST_WAITING} entries wait at most"
            self._log.error("history_unavailable", why=why, note=note)
        self._problem = why

    def _let_go(self) -> None:
        if self._store is not None:
            self._store.close()
        self._store = None

    def _own(self, evidence: str) -> Entry:
        return Entry(time.time(), HISTORY, evidence=evidence)
