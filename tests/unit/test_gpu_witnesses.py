"""Two witnesses of one event, and events that only look alike; the queue that they go through."""

from __future__ import annotations

import os
import select
from pathlib import Path

from nodeagent.gpu.facts import XidEvent
from nodeagent.gpu.kernel_log import KernelLog
from nodeagent.gpu.witnesses import Witnesses
from nodeagent.gpu.xids import XidQueue


def said(source: str, seconds: float, xid: int = 79, uuid: str = "GPU-a") -> XidEvent:
    return XidEvent(uuid, xid, seconds, source)


def news(*events: XidEvent) -> list[bool]:
    """Which of the events are news, told in this order."""
    witnesses = Witnesses()
    return [witnesses.is_new(event) for event in events]


def test_the_other_witness_confirms_within_five_seconds() -> None:
    assert news(said("nvml", 100.0), said("kernel", 104.9)) == [True, False]
    assert news(said("kernel", 100.0), said("nvml", 100.0)) == [True, False]
    assert news(said("nvml", 100.0), said("kernel", 105.1)) == [True, True]


def test_the_second_witness_may_have_the_earlier_stamp() -> None:
    assert news(said("nvml", 104.0), said("kernel", 100.0)) == [True, False]
    assert news(said("nvml", 106.0), said("kernel", 100.0)) == [True, True]


def test_what_one_witness_says_twice_has_happened_twice() -> None:
    assert news(said("nvml", 100.0), said("nvml", 100.1)) == [True, True]
    four = (said("nvml", 100.0), said("nvml", 100.1), said("kernel", 100.2), said("kernel", 100.3))
    assert news(*four) == [True, True, False, False]
    assert news(said("nvml", 100.0), said("kernel", 100.1), said("kernel", 100.2)) == [True, False, True]


def test_another_gpu_or_another_number_is_another_event() -> None:
    assert news(said("nvml", 100.0, 79), said("kernel", 100.0, 48)) == [True, True]
    assert news(said("nvml", 100.0, 79, "GPU-a"), said("kernel", 100.0, 79, "GPU-b")) == [True, True]


def test_a_switchs_number_is_not_a_gpus() -> None:
    witnesses = Witnesses()
    assert witnesses.is_new(XidEvent("", 79, 100.0, "nvml", bus_id="0000:c1:00.0"))
    assert witnesses.is_new(XidEvent("", 79, 100.0, "kernel", bus_id="0000:c1:00.0", kind="sxid"))


def test_what_waits_too_long_is_forgotten_also_by_its_own_kind() -> None:
    witnesses = Witnesses()
    assert all(witnesses.is_new(said("kernel", 100.0 + seconds)) for seconds in range(1000))
    assert sum(map(len, witnesses._alone.values())) == 6


def queue(path: Path) -> XidQueue:
    path.touch()
    return XidQueue(KernelLog(str(path), since=0.0))


def wakes(xids: XidQueue) -> bool:
    return bool(select.select([xids.fileno()], [], [], 0)[0])


def test_the_queue_wakes_until_it_is_taken(tmp_path: Path) -> None:
    xids = queue(tmp_path / "kmsg")
    assert not wakes(xids)
    for _ in range(3):
        xids.from_probe({"uuid": "GPU-a", "xid": 79, "monotonic": 100.0})
    assert wakes(xids)
    assert [event.sequence for event in xids.take()] == [1, 2, 3]
    assert not wakes(xids)
    assert xids.take() == ()
    xids.close()


def test_the_queue_names_the_kernels_gpus(tmp_path: Path) -> None:
    xids = queue(tmp_path / "kmsg")
    xids.uuids["0000:3b:00.0"] = "GPU-a"
    with open(tmp_path / "kmsg", "a", encoding="ascii") as log:
        log.write("4,1,200000000,-;NVRM: Xid (PCI:0000:3b:00): 79, x\n")
        log.write("4,2,200000000,-;NVRM: Xid (PCI:0000:3c:00): 79, x\n")
        log.write("4,3,200000000,-;nvidia-nvswitch0: SXid (PCI:0000:3b:00.0): 20034, Fatal\n")
    xids.read_kernel()
    xids.from_probe({"uuid": "GPU-a", "xid": 79, "monotonic": 201.0})
    told = [(event.uuid, event.bus_id, event.kind, event.xid) for event in xids.take()]
    assert told == [
        ("GPU-a", "0000:3b:00.0", "xid", 79),
        ("", "0000:3c:00.0", "xid", 79),
        ("", "0000:3b:00.0", "sxid", 20034),
    ]
    xids.close()


def test_a_log_that_can_be_waited_for_wakes_by_itself(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kmsg")
    xids = XidQueue(KernelLog(str(tmp_path / "kmsg"), since=0.0))
    with open(tmp_path / "kmsg", "w", encoding="ascii") as writer:
        assert not wakes(xids)
        writer.write("4,1,200000000,-;NVRM: Xid (PCI:0000:3b:00): 79, x\n")
        writer.flush()
        assert wakes(xids)
        xids.read_kernel()
        assert len(xids.take()) == 1
        assert not wakes(xids)
    xids.close()
