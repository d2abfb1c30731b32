"""The probe process: reads the GPUs for its parent, so that a call that hangs or crashes takes only this process along.

Speaks JSON, one object a line. It is asked on stdin:

    {"op": "sample", "known": [[index, uuid, bus_id], …], "last": [uuid or index, …], "skip": [uuid or index, …],
     "watch": whether XIDs are wanted from here}
    {"op": "look", "gpus": [uuid, …]} only who uses these GPUs
    {"op": "tend", "gpus": [uuid], "wish": {setting: value}}   bring their modes to that
    {"op": "release"}                 let NVML go, so that a GPU can be reset

and answers on stdout, at a sample in this order:

    {"host": {…}}                     what the kernel says; no NVML in it
    {"node": {…}}                     versions, or why NVML does not answer
    {"begin": {…}}                    the GPU that is turned to now: index, and UUID and bus id if known; once more when
                                      it has said who it is, if that is news or took long
    {"gpu": {…}}                      what was read of it (GpuFacts' fields, its NVLinks and its PCIe neighbourhood)
    {"end": {…}}                      the sweep is over
    {"tended": {…}}                   at a tend: which settings were changed, and which refused
    {"released": …}                   to a release

A look and a tend begin and end likewise, with no host, and a node only where NVML fails.

In between, at any time, `{"xid": {…}}`: the event thread's, as they come.

Lean on purpose (no yaml, structlog, asyncio, dataclasses): it lives as long as the agent. It ends when its stdin does,
and the kernel ends it with the thread that started it.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time

from nodeagent.gpu import infiniband, procfs
from nodeagent.gpu.events import Events
from nodeagent.gpu.nvml import GpuFault, Library, LibraryFault, NvmlFault
from nodeagent.gpu.output import Output
from nodeagent.gpu.reading import Reading
from nodeagent.gpu.tending import attend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
SIGKILL = 9
MUTE = 9
"""Failed calls for each one answered, from which on a GPU counts as one that cannot be read."""
PORTS_PATIENCE = 0.2
"""Seconds for which a sweep waits for the InfiniBand ports, which answer within a millisecond when they are well."""
QUIET = 0.1
"""Seconds after which the parent is told once more which GPU is being read, though it knows: a sign of life."""


class Sweeper:
    """Reads all GPUs, in an order that leaves those which hung before to the end."""

    def __init__(self, output: Output, proc: str, sys_root: str) -> None:
        self._output = output
        self._proc = proc
        self._sys = sys_root
        self._bus = procfs.PciBus(sys_root)
        self._library = Library()
        self._events = Events(self._library, output)
        self._ports = infiniband.Watch(sys_root)
        self._slots = procfs.pci_slots(sys_root)
        self._places: dict[int, str] = {}
        """Index -> bus id, as the last sweep found them."""
        self._uuids: dict[str, str] = {}
        """Bus id -> UUID, of every GPU ever read."""
        self._watch = True
        self._forget()

    def _forget(self) -> None:
        self._lasting: dict[str, dict[str, Any]] = {}
        self._link_ends: dict[str, dict[int, tuple[int, int, str]]] = {}
        self._ancestors: dict[tuple[str, str], int] = {}

    def release(self) -> None:
        """Let NVML go."""
        self._events.stop()
        self._library.close()
        self._forget()

    def sweep(self, request: dict[str, Any]) -> None:
        """Answer one request for a sample."""
        self._output.send(
            host={
                "pci": self._bus.gpus(),
                "kernel_driver": procfs.driver_version(self._proc, self._sys),
                "device_rule": procfs.device_rule(self._proc),
                **self._ports.read(PORTS_PATIENCE),
            }
        )
        for index, uuid, bus_id in request.get("known", ()):
            self._places.setdefault(index, bus_id)
            self._uuids.setdefault(bus_id, uuid)
        self._watch = request.get("watch", True)
        count = self._node()
        if count is not None:
            try:
                self._gpus(count, request.get("last", []), request.get("skip", []))
            except LibraryFault as fault:  # the driver went away under us: what was read is of a node that is no more
                self.release()
                self._output.send(node={"nvml_error": fault.code, "nvml_error_text": fault.text})
        self._output.send(end={})

    def attend(self, request: dict[str, Any]) -> None:
        """Answer a look or a tend."""
        try:
            self._library.open()
            for uuid in request["gpus"]:
                self._begin(self._index_of(uuid), uuid, "")
                self._output.send(**attend(self._library, uuid, request.get("wish")))
        except LibraryFault as fault:
            self.release()
            self._output.send(node={"nvml_error": fault.code, "nvml_error_text": fault.text})
        self._output.send(end={})

    def _index_of(self, uuid: str) -> int:
        return next((index for index, bus_id in self._places.items() if self._uuids.get(bus_id) == uuid), -1)

    def _node(self) -> int | None:
        """Open NVML, say what it is, and count its GPUs; a driver that was loaded anew takes a second attempt."""
        for attempt in (1, 2):
            try:
                self._library.open()
                count = self._library.count()
                self._output.hold(
                    node={
                        "driver": self._library.value("nvmlSystemGetDriverVersion") or "",
                        "nvml_version": self._library.value("nvmlSystemGetNVMLVersion") or "",
                    }
                )
            except NvmlFault as fault:
                was_open = self._library.is_open
                self.release()
                if attempt == 1 and was_open:
                    continue
                self._output.send(node={"nvml_error": fault.code, "nvml_error_text": fault.text})
                return None
            return count
        return None

    def _gpus(self, count: int, last: list[Any], skip: list[Any]) -> None:
        expected = self._expected(count)
        self._places = {}

        def rank(index: int, names: list[Any]) -> int:
            """Where a list names this GPU, counted from 1; 0 if it does not."""
            names_of_it = (index, expected[index][0] or index)
            return next((at for at, name in enumerate(names, 1) if name in names_of_it), 0)

        handles: dict[str, Any] = {}
        for index in sorted(range(count), key=lambda index: rank(index, last)):
            uuid, bus_id = expected[index]
            if rank(index, skip):
                self._places[index] = bus_id
                continue
            suspect = rank(index, last) > 0
            if suspect:
                self._events.start()  # those read so far report, also if this one never answers
            self._places[index] = self._gpu(index, uuid, bus_id, suspect, handles)
        self._events.start()

    def _expected(self, count: int) -> list[tuple[str, str]]:
        """Who has which index, before any GPU is asked: (UUID, bus id) for each, empty where that is not known.

        The last sweep tells as long as the number of GPUs is the same; else the driver's own list does, which is there
        without touching a GPU: NVML enumerates by bus id.
        """
        places = [self._places[index] for index in sorted(self._places)]
        if len(places) != count:
            places = procfs.gpu_bus_ids(self._proc)
        if len(places) != count:
            places = [""] * count
        return [(self._uuids.get(bus_id, ""), bus_id) for bus_id in places]

    def _begin(self, index: int, uuid: str, bus_id: str) -> None:
        self._output.send(begin={"index": index, "uuid": uuid, "bus_id": bus_id})

    def _gpu(self, index: int, uuid: str, bus_id: str, suspect: bool, handles: dict[str, Any]) -> str:
        """Read one GPU and send it; returns its bus id. `handles` gains those that answer."""
        self._begin(index, uuid, bus_id)
        began, told = time.monotonic(), (uuid, bus_id)
        reading = None
        answered, failed = self._library.answered, self._library.failed
        try:
            if suspect and not uuid:  # it hung before it could say who it is: its name first, if that can be had
                uuid = self._identity(bus_id).uuid
                told = (uuid, bus_id)
                self._begin(index, uuid, bus_id)
            handle = self._library.handle(index)
            reading = Reading(self._library, handle)
            reading.identify()
            bus_id = reading.record.setdefault("bus_id", bus_id)
            uuid = reading.record.get("uuid") or uuid or self._identity(bus_id).uuid
            reading.record["uuid"] = uuid
            if told != (uuid, bus_id) or time.monotonic() - began > QUIET:
                self._begin(index, uuid, bus_id)
            if bus_id:
                self._uuids[bus_id] = uuid
            if self._watch:
                self._events.register(handle, uuid)
            lasting = self._lasting.setdefault(bus_id, {})
            reading.read(lasting, self._link_ends.setdefault(bus_id, {}))
            failed = self._library.failed - failed
            if failed:
                lasting.clear()  # what was not told now may be told next time
            reading.record["failed_calls"] = failed
            if failed >= MUTE * max(1, self._library.answered - answered):
                raise GpuFault(*self._library.last_failure)
            self._add_caps(reading.record)
            ancestors = self._neighbourhood(handle, bus_id, handles)
        except GpuFault as fault:
            self._output.hold(gpu=self._faulty(index, uuid, bus_id, fault, reading))
            return bus_id
        links = {"nvlinks": reading.nvlinks, "ancestors": ancestors}
        numa_node = procfs.numa_node(self._sys, bus_id)
        self._output.hold(
            gpu={**reading.record, "index": index, "numa_node": numa_node, "slot": self._slot(bus_id), **links}
        )
        return bus_id

    def _slot(self, bus_id: str) -> str:
        return self._slots.get(bus_id.partition(".")[0], "")

    def _identity(self, bus_id: str) -> procfs.GpuIdentity:
        return procfs.gpu_identity(self._proc, bus_id) or procfs.GpuIdentity(bus_id)

    def _add_caps(self, record: dict[str, Any]) -> None:
        """Name the capability files of a GPU's instances, as its minor leads to them."""
        for mig in record.get("mig", ()):
            if "minor" in record:
                caps = procfs.mig_caps(self._proc, record["minor"], mig["gpu_instance"], mig["compute_instance"])
                mig["caps"] = caps

    def _neighbourhood(self, handle: Any, bus_id: str, handles: dict[str, Any]) -> dict[str, int]:
        """NVML's common ancestor level (-1: no answer) with each GPU read before this one; asked once a pair."""
        found = {}
        for other, other_handle in handles.items():
            pair = (min(bus_id, other), max(bus_id, other))
            if pair not in self._ancestors:
                level = self._library.value("nvmlDeviceGetTopologyCommonAncestor", handle, other_handle)
                self._ancestors[pair] = -1 if level is None else level
            found[other] = self._ancestors[pair]
        handles[bus_id] = handle
        return found

    def _faulty(self, index: int, uuid: str, bus_id: str, fault: GpuFault, reading: Reading | None) -> dict[str, Any]:
        """A GPU that does not answer: what was read of it, what is remembered, what /proc knows."""
        record: dict[str, Any] = dict(self._lasting.get(bus_id, {}))
        if not uuid and bus_id:
            identity = self._identity(bus_id)
            uuid = identity.uuid
            record.update(minor=identity.minor, name=identity.model, vbios=identity.vbios)
        if reading is not None:
            record.update(reading.record)
        record.update(uuid=uuid, bus_id=bus_id, index=index, numa_node=procfs.numa_node(self._sys, bus_id))
        record.update(slot=self._slot(bus_id))
        return {**record, "error": fault.code, "error_text": fault.text}


def follow_parent(parent: int) -> None:
    """Have the kernel end this process with its parent; ends at once if that is gone already."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_NAME, b"gpu-probe", 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def main(argv: list[str]) -> None:
    """Serve the parent until it closes stdin. `argv`: the parent's pid, the roots of /proc and /sys."""
    parent, proc, sys_root = argv
    follow_parent(int(parent))
    output = Output(os.dup(1))
    os.dup2(2, 1)  # nobody else's words among ours: what a library prints goes to the log
    sweeper = Sweeper(output, proc, sys_root)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if request["op"] == "release":
            sweeper.release()
            output.send(released=True)
        else:
            (sweeper.sweep if request["op"] == "sample" else sweeper.attend)(request)
    os._exit(0)  # not through the interpreter's end: the event thread may sit in NVML


if __name__ == "__main__":
    main(sys.argv[1:])
