"""The kernel's words for an XID, and which of its records are new."""

from __future__ import annotations

import itertools
import os
import stat
from pathlib import Path

import pytest

from nodeagent.gpu.kernel_log import KernelLog, parse_record

LOST = "GPU has fallen off the bus."


def record(text: str, seconds: float = 200.0, header: str = "4,1001,{},-") -> str:
    return f"{header.format(int(seconds * 1e6))};{text}"


def test_an_xid() -> None:
    xid = parse_record(record(f"NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, {LOST}", 12.5))
    assert xid is not None
    assert (xid.bus_id, xid.xid, xid.monotonic, xid.switch) == ("0000:3b:00.0", 79, 12.5, False)
    assert (xid.gpu_instance, xid.compute_instance) == (None, None)
    assert xid.text.endswith(LOST)


def test_an_xid_of_a_mig_instance() -> None:
    xid = parse_record(record("NVRM: Xid (PCI:0000:3B:00 GPU-I:05 GPU-CI:00): 31, pid=4711, name=train"))
    assert xid is not None
    assert (xid.bus_id, xid.xid, xid.gpu_instance, xid.compute_instance) == ("0000:3b:00.0", 31, 5, 0)


def test_a_fault_of_an_nvswitch_is_another_kind() -> None:
    xid = parse_record(record("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 MC TS"))
    assert xid is not None
    assert (xid.bus_id, xid.xid, xid.switch) == ("0000:c1:00.0", 28006, True)


@pytest.mark.parametrize(
    "text",
    ["NVRM: Xid (0000:03:00): 6, PE0001", "NVRM: Xid (PCI:00010000:03:00): 6, x", "NVRM: Xid (PCI:0000:03:00.0): 6"],
)
def test_other_spellings_of_the_address(text: str) -> None:
    xid = parse_record(record(text))
    assert xid is not None and xid.xid == 6 and xid.bus_id.endswith(":03:00.0")


def test_headers_may_have_more_fields_and_dictionary_lines_may_follow() -> None:
    xid = parse_record(record("NVRM: Xid (PCI:0000:3b:00): 13, x\n SUBSYSTEM=pci\n", header="4,7,{},-,caller=T99"))
    assert xid is not None and xid.xid == 13 and "SUBSYSTEM" not in xid.text


@pytest.mark.parametrize(
    "line",
    [
        record("usb 1-1: new high-speed USB device"),
        record("NVRM: GPU at PCI:0000:3b:00: GPU-1b2c3d4e-0000-4000-8000-000000000000"),
        record("NVRM: Xid (PCI:0000:3b:00"),
        record("NVRM: Xid (PCI:0000:3b:00): none"),
        record("train[4711]: segfault at 0: NVRM: Xid (PCI:0000:3b:00): 79, forged"),
        "NVRM: Xid (PCI:0000:3b:00): 79, without a header",
        "4,1,soon,-;NVRM: Xid (PCI:0000:3b:00): 79, x",
        "",
    ],
)
def test_what_is_no_xid(line: str) -> None:
    assert parse_record(line) is None


def write(path: Path, *lines: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


NUMBERS = itertools.count(2000)


def xid_line(number: int, seconds: float, sequence: int | None = None) -> str:
    header = f"4,{next(NUMBERS) if sequence is None else sequence},{{}},-"
    return record(f"NVRM: Xid (PCI:0000:3b:00): {number}, x", seconds, header)


def test_only_records_later_than_the_start_count(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    write(path, xid_line(79, 99.9), xid_line(13, 100.0), xid_line(31, 100.1))
    log = KernelLog(str(path), since=100.0)
    assert [xid.xid for xid in log.read()] == [31]
    write(path, xid_line(79, 50.0), xid_line(48, 101.0), "4,9,1,-;other")
    assert [xid.xid for xid in log.read()] == [48]
    assert log.read() == []
    log.close()


def test_now_is_the_start_where_none_is_given(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    write(path, xid_line(79, 499.0), xid_line(48, 501.0))
    log = KernelLog(str(path), clock=lambda: 500.0)
    assert [xid.xid for xid in log.read()] == [48]
    log.close()


def test_a_line_in_two_pieces_is_one_record(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    line = xid_line(79, 101.0)
    path.write_text(line[:30])
    log = KernelLog(str(path), since=100.0)
    assert log.read() == []
    write(path, line[30:])
    assert [xid.xid for xid in log.read()] == [79]
    log.close()


def test_a_log_that_is_missing_or_unreadable_is_silent_until_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    log = KernelLog(str(path), since=100.0)
    assert (log.read(), log.fileno()) == ([], -1)
    write(path, xid_line(79, 101.0))
    assert [xid.xid for xid in log.read()] == [79]
    log.close()
    directory = KernelLog(str(tmp_path), since=100.0)
    assert directory.read() == []
    directory.close()


def test_a_pipe_can_be_waited_for_and_a_plain_file_cannot(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    log = KernelLog(str(tmp_path / "fifo"), since=100.0)
    with open(tmp_path / "fifo", "w", encoding="utf-8") as writer:
        assert log.fileno() >= 0
        writer.write(xid_line(79, 101.0) + "\n")
        writer.flush()
        assert [xid.xid for xid in log.read()] == [79]
    log.close()
    assert log.fileno() == -1
    write(tmp_path / "file", "")
    plain = KernelLog(str(tmp_path / "file"))
    assert plain.fileno() == -1
    plain.close()


class Device(KernelLog):
    """A log that behaves as /dev/kmsg does: one record a read, or an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: list[object], now: float) -> None:
        super().__init__("/dev/null", clock=lambda: now)
        self._device = True

        def read(_fd: int, _count: int) -> bytes:
            answer = answers.pop(0) if answers else BlockingIOError()
            if isinstance(answer, OSError):
                raise answer
            return str(answer).encode()

        monkeypatch.setattr(os, "read", read)


def test_overwritten_records_are_counted_and_reading_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Device(monkeypatch, [BrokenPipeError(), xid_line(79, 500.0)], 500.0)
    assert [xid.xid for xid in log.read()] == [79]
    assert log.overruns == 1
    log.close()


def test_a_stamp_of_a_clock_gone_astray_gives_way_to_the_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Device(monkeypatch, [xid_line(79, 498.0), xid_line(48, 300.0), xid_line(31, 700.0)], 500.0)
    assert [(xid.xid, xid.monotonic) for xid in log.read()] == [(79, 498.0), (48, 500.0), (31, 500.0)]
    log.close()


def test_an_error_closes_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Device(monkeypatch, [OSError(5, "I/O error")], 500.0)
    assert log.read() == []
    assert log.fileno() == -1


class Ring:
    """The kernel's ring of records: a descriptor reads on from where it stands, lseek takes it to the oldest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *records: str) -> None:
        self.records = list(records)
        self.at = 0
        monkeypatch.setattr(os, "read", self.read)
        monkeypatch.setattr(os, "lseek", self.seek)
        monkeypatch.setattr(os, "open", lambda *_: 99)
        monkeypatch.setattr(os, "close", lambda _: None)
        monkeypatch.setattr(os, "fstat", lambda _: os.stat_result((stat.S_IFCHR, *[0] * 9)))

    def read(self, _fd: int, _count: int) -> bytes:
        if self.at == len(self.records):
            raise BlockingIOError
        self.at += 1
        return self.records[self.at - 1].encode()

    def seek(self, _fd: int, _offset: int, whence: int) -> int:
        self.at = 0 if whence == os.SEEK_SET else len(self.records)
        return 0


def test_what_was_logged_while_nobody_listened_is_taken_up_once_and_nothing_older(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ring = Ring(monkeypatch, xid_line(79, 10.0, 5), "6,6,11,-;other")
    first = KernelLog("/dev/kmsg", clock=lambda: 500.0)
    assert (first.read(), first.sequence) == ([], 6)
    ring.records += [xid_line(48, 300.0, 7), xid_line(13, 301.0, 8)]
    ring.at = 0
    second = KernelLog("/dev/kmsg", clock=lambda: 500.0)
    assert (second.read(), second.sequence) == ([], 8), "without a word of where to go on, from now on"
    second.resume(6)
    ring.records.append(xid_line(94, 500.0, 9))
    assert [(xid.xid, xid.late, xid.monotonic) for xid in second.read()] == [
        (48, True, 300.0),
        (13, True, 301.0),
        (94, False, 500.0),
    ]
    assert (second.read(), second.sequence) == ([], 9)
    second.resume(9)
    second.resume(12)
    assert (second.read(), second.sequence) == ([], 9), "there is nothing to resume"


def test_a_log_that_had_to_be_opened_again_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring(monkeypatch, xid_line(79, 10.0, 5))
    log = KernelLog("/dev/kmsg", clock=lambda: 500.0)
    log.close()
    ring.records.append(xid_line(48, 500.0, 6))
    ring.at = 0
    assert [(xid.xid, xid.late) for xid in log.read()] == [(48, False)]


def test_records_that_were_overwritten_before_the_return_are_lost_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring(monkeypatch, xid_line(79, 10.0, 5))
    log = KernelLog("/dev/kmsg", clock=lambda: 500.0)
    ring.records = [xid_line(48, 400.0, 900), xid_line(13, 400.0, 901)]
    log.sequence = 901
    log.resume(5)
    assert [xid.xid for xid in log.read()] == [48, 13]
    assert log.sequence == 901
