"""Maintenance: the agent looks and tells, takes nothing out and brings nothing back, and then does what is due."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest

from nodeagent.health.finding import RecoveryAction
from nodeagent.history.entry import DONE, WAITS, Entry, as_event, from_event
from nodeagent.policy.decide import BY_ADMIN
from nodeagent.report import maintenance_line, plain_maintenance
from nodeagent.state.files import Directory
from nodeagent.state.maintenance import Maintenance, drop_maintenance, read_maintenance, write_maintenance
from nodeagent.state.verdict_file import read_verdict
from tests.unit.fake_gpu import GIB
from tests.unit.test_cleaner import Room
from tests.unit.test_cycle import Bench


@pytest.fixture
def data(tmp_path: Path) -> Directory:
    tmp_path.chmod(0o755)
    return Directory(str(tmp_path / "data"), create=True)


@pytest.fixture(params=[True, False], ids=["spares", "drains"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    tmp_path.chmod(0o755)
    return Bench(tmp_path, spares_units=request.param)


def begin(bench: Bench, until: float = 0.0) -> None:
    bench.cycle.ports.actions.begin_maintenance(Maintenance("alice", "new fans", time.time(), until))


def test_a_record_is_read_as_it_was_written_and_gone_when_dropped(data: Directory) -> None:
    assert read_maintenance(data) is None
    one = Maintenance("alice", "new\nfans", 1000.5, 2000.25, "gpu-nodeagent/1: maintenance")
    write_maintenance(data, one)
    assert read_maintenance(data) == one
    drop_maintenance(data)
    assert read_maintenance(data) is None


@pytest.mark.parametrize("text", ["", "format=9\n", "format=1\nwho=alice\n", "format=1\nsince=x\nuntil=0\n"])
def test_a_record_that_cannot_be_read_keeps_hands_off_and_says_so(data: Directory, text: str) -> None:
    data.replace("maintenance", text)
    one = read_maintenance(data)
    assert one is not None and "unreadable record" in one.why and not one.is_over(1e12)


def test_a_disk_that_does_not_answer_is_no_maintenance(data: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    write_maintenance(data, Maintenance("alice"))

    def dying(self: Directory, name: str) -> str:
        raise OSError(errno.EIO, name)

    monkeypatch.setattr(Directory, "read", dying)
    assert read_maintenance(data) is None


def test_it_is_over_at_its_time_and_never_without_one() -> None:
    assert [Maintenance(until=until).is_over(100.0) for until in (0.0, 99.0, 100.0, 101.0)] == [
        *(False, True, True, False),
    ]


def test_a_line_for_people_says_who_since_until_and_why() -> None:
    plain = plain_maintenance(Maintenance("alice", "new fans", 0.0, 7200.0))
    assert plain is not None
    line = maintenance_line(plain)
    assert line.startswith("maintenance since 1970-01-01T00:00:00Z by alice, until 1970-01-01T02:00:00Z: ")
    assert line.endswith("nothing is taken out or brought back (new fans)")
    open_ended = plain_maintenance(Maintenance())
    assert open_ended is not None and "until `gpu-nodeagent maintenance off`" in maintenance_line(open_ended)


def test_nothing_is_taken_out_while_it_stands_and_all_that_is_due_when_it_ends(bench: Bench) -> None:
    bench.run()
    begin(bench)
    bench.source.lose(2)
    bench.run(3)
    assert bench.store.retired() == {} and not bench.scheduler.state.drained and bench.scheduler.drains == 0
    assert read_verdict(bench.state).units[2].state == "FAILED", "hooks are told as ever"
    waiting = [entry for entry in bench.history.of("retire", "drain") if entry.after == WAITS]
    due = ["retire"] if bench.scheduler.spares_units else ["retire", "drain"]
    assert [entry.kind for entry in waiting] == due, "each told once"
    assert bench.cycle.snapshot is not None and bench.cycle.snapshot.maintenance is not None
    assert bench.cycle.snapshot.counters.decisions == {(kind, WAITS): 1 for kind in due}
    assert bench.cycle.summary().endswith("; maintenance")
    bench.cycle.ports.actions.end_maintenance("done", BY_ADMIN)
    bench.run()
    assert list(bench.store.retired()) == [bench.uuid(2)]
    assert bench.scheduler.state.drained != bench.scheduler.spares_units
    assert bench.history.of("retire")[-1].after == DONE
    assert "maintenance" not in bench.cycle.summary()


def test_nothing_is_brought_back_while_it_stands(bench: Bench) -> None:
    bench.run()
    bench.source.lose(2)
    bench.run()
    begin(bench)
    bench.source.heal()
    bench.run(12)
    assert list(bench.store.retired()) == [bench.uuid(2)]
    drained = not bench.scheduler.spares_units
    assert bench.scheduler.state.drained == drained
    bench.cycle.ports.actions.end_maintenance("done", BY_ADMIN)
    bench.run(2)
    assert bench.store.retired() == {} and not bench.scheduler.state.drained


def test_a_drain_that_became_due_is_made_in_the_next_cycle_not_when_the_scheduler_is_asked_again(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o755)
    bench = Bench(tmp_path, spares_units=False)
    bench.run(4)
    actions = bench.cycle.ports.actions
    begin(bench)
    actions.store.retire(bench.uuid(1), [("reason", "by hand"), ("by", BY_ADMIN)])
    bench.run()
    assert [entry.kind for entry in bench.history.of("retire", "drain") if entry.after == WAITS] == ["drain"]
    actions.end_maintenance("done", BY_ADMIN)
    bench.run()
    assert bench.scheduler.state.drained


def test_it_outlives_the_agent_and_ends_by_itself_also_when_none_ran(bench: Bench) -> None:
    begin(bench, until=time.time() + 3600)
    bench.cycle = bench.new_cycle()
    bench.source.lose(2)
    bench.run(2)
    assert bench.store.retired() == {}
    write_maintenance(
        Directory(str(bench.directory / "data")), Maintenance("alice", "new fans", 1.0, until=bench.clock.wall() - 1)
    )
    bench.cycle = bench.new_cycle()
    bench.run()
    assert list(bench.store.retired()) == [bench.uuid(2)]
    told = [(entry.after, entry.by) for entry in bench.history.of("maintenance")]
    assert told == [("on", "admin"), ("off", "agent")]
    assert bench.cycle.ports.actions.records.maintenance() is None
    assert ("maintenance", {"after": "off", "why": "its time is over"}) in bench.log.lines


def test_what_a_job_left_on_its_gpu_waits_in_cleaning_and_is_retired_when_it_ends(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    room = Room(tmp_path)
    begin(room)
    room.source.set(1, memory_used=3 * GIB)
    room.hand_over(room.uuid(0), room.uuid(1))
    room.clean()
    room.clean(after=11)
    room.clean(after=11)
    assert room.held() == {room.uuid(1)} and room.retired() == {}, "given to nobody, and not retired"
    waiting = [fields for kind, fields in room.log.lines if kind == "retire"]
    assert [(fields["gpu_uuid"], fields["waits"]) for fields in waiting] == [(room.uuid(1), True)], "said once"
    room.cycle.ports.actions.end_maintenance("done", BY_ADMIN)
    room.clean()
    assert room.held() == set() and room.retired() == {room.uuid(1): "leftover-memory"}


def test_who_began_it_and_who_retired_a_gpu_is_in_history_also_from_the_record(bench: Bench) -> None:
    actions = bench.cycle.ports.actions
    actions.who = "alice"
    actions.retire(bench.uuid(0), "a fan", "administrator", RecoveryAction.NONE, BY_ADMIN)
    assert bench.store.retired()[bench.uuid(0)]["who"] == "alice"
    assert bench.history.of("retire")[-1].by == "admin alice"
    begun = Entry(1.0, "maintenance", after="on", by=BY_ADMIN, evidence="new fans")
    told = from_event(as_event(begun, "alice"), 2.0, "boot")
    assert told is not None
    assert (told.kind, told.after, told.by, told.at) == ("maintenance", "on", "admin alice", 1.0)
    older = {key: value for key, value in as_event(begun, "bob").items() if key != "after"}
    assert from_event({**older, "action": "drain"}, 2.0, "boot") is not None
