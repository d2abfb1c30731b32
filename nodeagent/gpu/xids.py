"""XIDs as they come, from both witnesses, each once, in a queue that wakes whoever waits for them."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nodeagent.gpu.facts import XidEvent
from nodeagent.gpu.kernel_log import KernelLog, KernelXid
from nodeagent.gpu.witnesses import Witnesses


class XidQueue:
    """Events of the probe process and of the kernel log.

    `fileno` is one descriptor for good: readable when events wait, when the kernel log has something new, and when
    anything does that was added by `watch`.
    """

    def __init__(self, kernel: KernelLog) -> None:
        self.uuids: dict[str, str] = {}
        """Bus id -> UUID; the kernel log knows GPUs only by bus id."""
        self._kernel = kernel
        self._kernel_fd = -1
        self._witnesses = Witnesses()
        self._waiting: list[XidEvent] = []
        self._sequence = 0
        self._epoll = select.epoll()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._watch_kernel()

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._epoll.fileno()

    @property
    def kernel_sequence(self) -> int | None:
        """The number of the last record of the kernel's that has been taken up; None where it has none."""
        return self._kernel.sequence

    def resume(self, after: int) -> None:
        """Take up what the kernel has logged after that record."""
        self._kernel.resume(after)

    def kernel_fileno(self) -> int:
        """Return the kernel log's own descriptor, -1 if it has none that can be waited on."""
        return self._kernel.fileno()

    @property
    def overruns(self) -> int:
        """How often the kernel overwrote what had not been read."""
        return self._kernel.overruns

    @property
    def has_kernel_log(self) -> bool:
        """Whether the kernel log can be read."""
        return self._kernel.is_open

    def watch(self, fd: int) -> None:
        """Wake also when `fd` is readable, until it is closed."""
        self._epoll.register(fd, select.EPOLLIN)

    def from_probe(self, record: Mapping[str, Any]) -> None:
        """Take up an event as the probe process sent it."""
        bus_id = next((bus_id for bus_id, uuid in self.uuids.items() if uuid == record["uuid"]), "")
        self._offer(XidEvent(source="nvml", bus_id=bus_id, **record))

    def read_kernel(self) -> None:
        """Take up what the kernel has logged."""
        for seen in self._kernel.read():
            self._offer(self._from_kernel(seen))
        self._watch_kernel()

    def take(self) -> tuple[XidEvent, ...]:
        """Return the events that wait and forget them."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass
        taken, self._waiting = tuple(self._waiting), []
        return taken

    def close(self) -> None:
        """Close all of it."""
        self._kernel.close()
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _from_kernel(self, seen: KernelXid) -> XidEvent:
        return XidEvent(
            uuid="" if seen.switch else self.uuids.get(seen.bus_id, ""),
            xid=seen.xid,
            monotonic=seen.monotonic,
            source="kernel",
            kind="sxid" if seen.switch else "xid",
            bus_id=seen.bus_id,
            gpu_instance=seen.gpu_instance,
            compute_instance=seen.compute_instance,
            text=seen.text,
            late=seen.late,
        )

    def _offer(self, event: XidEvent) -> None:
        if not self._witnesses.is_new(event):
            return
        self._sequence += 1
        self._waiting.append(replace(event, sequence=self._sequence))
        with contextlib.suppress(BlockingIOError):  # the pipe is full: it is readable, which is all that is wanted
            os.write(self._wake_write, b"x")

    def _watch_kernel(self) -> None:
        """Have the log wake us, also after it was opened anew."""
        fd = self._kernel.fileno()
        if fd != self._kernel_fd and fd >= 0:
            with contextlib.suppress(OSError):  # a kind of file that cannot be waited for: it is read at each sample
                self._epoll.register(fd, select.EPOLLIN)
        self._kernel_fd = fd
