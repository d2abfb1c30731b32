"""XIDs in the kernel log: the second witness, which needs no NVML.

Reads records of /dev/kmsg (Documentation/ABI/testing/dev-kmsg: `priority,sequence,microseconds,flags[,…];text`). Anyone
who may write there, which is root alone, can add one: that is how a site tests its alarms, so no record is refused for
its facility. The text must begin with the driver's words: a user's process name in another message cannot forge it.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from nodeagent.gpu.procfs import normal_bus_id

RECORD_BYTES = 16384
"""More than the kernel's longest record (8 KiB); a smaller buffer would be refused with EINVAL."""
MAX_RECORDS = 4096
"""Records taken at one call, so that a storm in the log cannot hold the caller."""
MAX_SKIPPED = 1_000_000
"""Records passed over at the start: more than the largest log holds, so that a storm in it cannot hold us for ever."""
MAX_SKEW = 5.0
"""Seconds. printk's clock is not steered by NTP as CLOCK_MONOTONIC is, and goes astray by minutes in some months of
uptime: a live record whose stamp is further than this from now is dated by its arrival."""
MIN_HEADER_FIELDS = 3

_BUS_ID = r"(?P<bus>[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)"
_XID = re.compile(
    rf"NVRM: Xid \((?:PCI:)?{_BUS_ID}"
    r"(?: GPU-I:(?P<gi>\d+))?(?: GPU-CI:(?P<ci>\d+))?\): (?P<xid>\d+)"
)
_SXID = re.compile(rf"(?:nvidia-nvswitch\d*: |NVRM: )?SXid \(PCI:{_BUS_ID}\): (?P<xid>\d+)")


@dataclass(frozen=True)
class KernelXid:
    """An XID (or, `switch`, an NVSwitch's SXid) as the kernel logged it. `monotonic` in seconds since boot.

    `late` says that it was logged while nobody listened.
    """

    bus_id: str
    xid: int
    monotonic: float
    switch: bool = False
    gpu_instance: int | None = None
    compute_instance: int | None = None
    text: str = ""
    late: bool = False


def sequence_of(record: str) -> int | None:
    """Return the record's number in its boot; the kernel counts every record, in order."""
    fields = record.partition(";")[0].split(",")
    return int(fields[1]) if len(fields) >= MIN_HEADER_FIELDS and fields[1].isdigit() else None


def parse_record(record: str) -> KernelXid | None:
    """Return the XID in one record (its first line; dictionary lines may follow), None if it holds none."""
    header, semicolon, rest = record.partition(";")
    fields = header.split(",")
    if not semicolon or len(fields) < MIN_HEADER_FIELDS or not fields[2].isdigit():
        return None
    text = rest.partition("\n")[0]
    found = _XID.match(text)
    switch = None if found else _SXID.match(text)
    match = found or switch
    if match is None:
        return None
    parts = match.groupdict()
    gi, ci = parts.get("gi"), parts.get("ci")
    return KernelXid(
        bus_id=normal_bus_id(parts["bus"]),
        xid=int(parts["xid"]),
        monotonic=int(fields[2]) / 1e6,
        switch=found is None,
        gpu_instance=None if gi is None else int(gi),
        compute_instance=None if ci is None else int(ci),
        text=text[:400],
    )


class KernelLog:
    """Reads the XIDs that are logged from now on; never blocks, never raises.

    Args:
        path: `/dev/kmsg`, or a plain file or FIFO of the same records, one a line (tests).
        since: monotonic seconds; only records stamped later count. Left out: those after now. In the real device that
            that is told by the records' numbers, which no clock can get wrong, and the stamps are not looked at.
        clock: monotonic seconds.

    A log that is missing or may not be read gives no XIDs; it is looked for again at each read.

    """

    def __init__(self, path: str, since: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.overruns = 0
        """How often the kernel overwrote records before they were read."""
        self.sequence: int | None = None
        """Of the real device: the number of the last record that was read, or was there before we came."""
        self._late_until = -1
        self._live = since is None
        self._clock = clock
        self._since = clock() if since is None else since
        self._device = False
        self._rest = b""
        self._fd = -1
        self._open()

    @property
    def is_open(self) -> bool:
        """Whether it could be opened."""
        return self._fd >= 0

    def fileno(self) -> int:
        """Return a descriptor that is readable when records wait, -1 while there is none. A plain file has none."""
        return self._fd if self._pollable else -1

    def read(self) -> list[KernelXid]:
        """Return the XIDs logged since the last read, in order."""
        if self._fd < 0:
            self._open()
        found = []
        for _ in range(MAX_RECORDS):
            chunk = self._chunk()
            if not chunk:
                break
            found += [xid for xid in map(self._dated, self._records(chunk)) if xid is not None]
        return found

    def resume(self, after: int) -> None:
        """Take up what the device has logged in this boot after that record, before we came."""
        if self._fd < 0 or not self._device or self.sequence is None or after >= self.sequence:
            return
        self._late_until, self.sequence = self.sequence, after
        os.lseek(self._fd, 0, os.SEEK_SET)

    def close(self) -> None:
        """Close the log."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _open(self) -> None:
        self._pollable = False
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            mode = os.fstat(self._fd).st_mode
            self._device = stat.S_ISCHR(mode)
            self._pollable = not stat.S_ISREG(mode)
            if self._device and self._live and self.sequence is None:
                self._skip()
        except OSError:
            self.close()

    def _skip(self) -> None:
        """Pass over what is there; by its numbers, so that it is known afterwards where we began."""
        for _ in range(MAX_SKIPPED):
            chunk = self._chunk()
            if not chunk:
                return
            self.sequence = sequence_of(chunk.decode("utf-8", "replace"))
        os.lseek(self._fd, 0, os.SEEK_END)

    def _chunk(self) -> bytes:
        """One record of the device, or a piece of the file; empty where no more is to be had now."""
        while self._fd >= 0:
            try:
                return os.read(self._fd, RECORD_BYTES)
            except BlockingIOError:
                return b""
            except BrokenPipeError:  # the kernel's way to say that records were overwritten; the next read goes on
                self.overruns += 1
            except OSError:
                self.close()
        return b""

    def _records(self, chunk: bytes) -> list[str]:
        if self._device:
            return [chunk.decode("utf-8", "replace")]
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        return [line.decode("utf-8", "replace") for line in lines]

    def _dated(self, record: str) -> KernelXid | None:
        late = False
        if self._device and self._live:
            sequence = sequence_of(record)
            if sequence is not None and self.sequence is not None and sequence <= self.sequence:
                return None
            self.sequence = self.sequence if sequence is None else sequence
            late = sequence is not None and sequence <= self._late_until
        xid = parse_record(record)
        if xid is None:
            return None
        if not (self._device and self._live):
            return xid if xid.monotonic > self._since else None
        if late:
            return replace(xid, late=True)
        now = self._clock()
        if abs(now - xid.monotonic) <= MAX_SKEW:
            return xid
        return replace(xid, monotonic=now)
