"""Events: appended by hooks, taken up by the agent, bounded."""

import os
from pathlib import Path

import pytest

from nodeagent.state import events
from nodeagent.state.files import Directory


@pytest.fixture
def state(tmp_path: Path) -> Directory:
    tmp_path.chmod(0o755)
    return Directory(str(tmp_path / "state"), create=True)


def test_events_come_back_once_in_order_with_any_text(state: Directory) -> None:
    assert events.append(state, "grant", job="1", why="a\tb\nc=d", user="")
    assert events.append(state, "release", job="1")
    first, second = events.take(state)
    assert (first.kind, first.fields) == ("grant", {"job": "1", "why": "a\tb\nc=d"})
    assert (second.kind, second.at >= first.at) == ("release", True)
    assert events.take(state) == []


def test_a_crash_of_the_agent_between_taking_and_reading_loses_nothing(state: Directory) -> None:
    events.append(state, "one")
    os.rename(events.EVENTS, events.TAKEN, src_dir_fd=state.fd, dst_dir_fd=state.fd)
    events.append(state, "two")
    assert [event.kind for event in events.take(state)] == ["one", "two"]


def test_past_the_cap_events_are_counted_instead(state: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "CAP", 200)
    kept = sum(events.append(state, "grant", job=str(n)) for n in range(20))
    assert 0 < kept < 20
    assert events.dropped(state) == 20 - kept
    assert len(events.take(state)) == kept
    assert events.append(state, "grant")


def test_an_event_never_raises(state: Directory) -> None:
    os.mkdir(f"{state.path}/{events.EVENTS}")
    assert events.append(state, "grant") is False
    assert events.dropped(state) == 1


def test_a_writer_that_opened_before_the_taking_is_not_lost(state: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    events.append(state, "one")
    lock_soon = events._lock_soon
    taken = []

    def taken_meanwhile(fd: int) -> None:
        if not taken:
            taken.extend(events.take(state))
        lock_soon(fd)

    monkeypatch.setattr(events, "_lock_soon", taken_meanwhile)
    assert events.append(state, "two")
    assert [event.kind for event in taken] == ["one"]
    assert [event.kind for event in events.take(state)] == ["two"]


def test_only_root_can_open_the_file(state: Directory, tmp_path: Path) -> None:
    events.append(state, "one")
    assert (tmp_path / "state" / "events").stat().st_mode & 0o777 == 0o600


def test_damaged_lines_are_skipped(state: Directory, tmp_path: Path) -> None:
    (tmp_path / "state" / "events").write_bytes(b"garbage\n\xff\xfe\n1.0\tgrant\tjob=1\n\n")
    assert [event.kind for event in events.take(state)] == ["grant"]


@pytest.mark.parametrize("shape", ["link", "dangling link", "FIFO", "directory", "hard link", "writable by all"])
def test_what_stands_in_their_place_is_removed_told_and_not_believed(
    state: Directory, tmp_path: Path, shape: str
) -> None:
    place, other = tmp_path / "state" / "events", tmp_path / "other"
    other.write_text("1.0\tgrant\tjob=1\n")
    if "link" in shape:
        (os.link if shape == "hard link" else os.symlink)(other if shape != "dangling link" else "/nowhere", place)
    elif shape == "FIFO":
        os.mkfifo(place)
    elif shape == "directory":
        place.mkdir()
    else:
        place.write_text(other.read_text())
        place.chmod(0o666)
    assert [event.kind for event in events.take(state)] == ["events_refused"]
    assert events.append(state, "grant")
    assert [event.kind for event in events.take(state)] == ["grant"]
    assert other.read_text() == "1.0\tgrant\tjob=1\n"
