"""One story: what the agent does and sees is the same in history, journal, status and metrics."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.cli import status_command
from nodeagent.cli.history_command import moment, text
from nodeagent.config.model import Limits, Policy
from nodeagent.errors import BadRequest
from nodeagent.gpu.facts import GpuFacts, MigInstance, Process
from nodeagent.gpu.plain import to_plain
from nodeagent.health.finding import RecoveryAction
from nodeagent.history.entry import AGENT, BY_HAND, DRAIN, RESUME, VERDICT, XID, Entry, Keeping, as_event
from nodeagent.metrics.native import render
from nodeagent.policy.decide import BY_ADMIN
from nodeagent.report import history_document, iso, status_document
from nodeagent.scheduler.port import Fleet, NodeState
from nodeagent.state import events
from nodeagent.state.documents import SNAPSHOT, read_document
from tests.unit.test_cycle import Bench
from tests.unit.test_metrics_native import by, parse

DEEDS = ("retire", "restore", "drain", "resume", "raise_drain", "forget_drain")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    tmp_path.chmod(0o755)
    return Bench(tmp_path)


@pytest.fixture
def slurmish(tmp_path: Path) -> Bench:
    tmp_path.chmod(0o755)
    return Bench(tmp_path, spares_units=False)


def story(bench: Bench, *kinds: str) -> list[tuple[str, str, str]]:
    return [(one.kind, one.unit, one.after) for one in bench.history.of(*kinds)]


def test_the_first_cycle_tells_all_verdicts_again_and_the_next_only_changes(bench: Bench) -> None:
    bench.run()
    first = bench.history.of(VERDICT)
    assert [(one.unit, one.after, one.again) for one in first] == [
        *((bench.uuid(slot), "OK", True) for slot in range(4)),
        ("", "OK", True),
    ]
    assert first[0].facts["power"] == 70.0 and first[0].serial == "1650000000000" and first[0].boot_id == "boot-1"
    bench.run(20)
    assert bench.history.of(VERDICT) == first and bench.history.of(*DEEDS) == []
    bench.cycle = bench.new_cycle()
    bench.run()
    assert len(bench.history.of(VERDICT)) == 10, "an agent that has just started does not know what was written"


def test_a_lost_gpu_is_one_story_in_history_journal_status_and_metrics(bench: Bench) -> None:
    bench.run()
    bench.source.set(2, processes=(Process(4711, 1 << 30),))
    bench.source.xid(2, 79, text="GPU has fallen off the bus.")
    bench.source.lose(2)
    del bench.history.entries[:], bench.log.lines[:]
    bench.run()
    xid, verdict, retire = bench.history.entries
    assert (xid.kind, xid.check, xid.count, xid.bus_id, xid.unit) == (XID, "79", 1, "0000:3b:00.0", bench.uuid(2))
    assert "fallen off the bus" in xid.evidence
    assert (verdict.before, verdict.after, verdict.severity, verdict.action) == (
        "OK",
        "FAILED",
        "error",
        "reboot_node",
    )
    assert (verdict.index, verdict.bus_id, verdict.serial) == (2, "0000:3b:00.0", "1650000000002")
    assert (
        verdict.facts["error"] == 15 and verdict.facts["error_text"] == "GPU is lost" and "power" not in verdict.facts
    )
    assert (retire.kind, retire.by, retire.after, retire.unit) == ("retire", "agent", "done", bench.uuid(2))

    assert bench.log.kinds() == ["xid", "verdict_changed", "retire", "driver_lent"]
    journal = dict(bench.log.lines)
    assert (
        journal["verdict_changed"]["why"] == verdict.evidence and journal["verdict_changed"]["check"] == verdict.check
    )
    assert journal["retire"]["why"] == retire.evidence and journal["retire"]["check"] == retire.check

    published = read_document(bench.state, SNAPSHOT)
    document = status_document(published, {}, bench.store.retired(), bench.clock.now, "boot-1", "n1")
    gpu = document["gpus"][2]
    assert gpu["since"] == iso(verdict.at) and gpu["verdict"] == verdict.after
    assert gpu["reasons"] == [dict(finding) for finding in verdict.findings]
    assert "; ".join(reason["evidence"] for reason in gpu["reasons"]) == verdict.evidence
    assert gpu["retired"]["reason"] == retire.evidence and float(gpu["retired"]["since"]) == retire.at
    shown, kept = status_command._text(document), text(bench.history.entries)
    assert iso(verdict.at) in shown and iso(verdict.at) in kept and "OK -> FAILED" in kept

    assert bench.cycle.snapshot is not None
    samples = parse(render(bench.cycle.snapshot, {}))
    assert samples["gpu_health", (("uuid", bench.uuid(2)), ("verdict", verdict.after))] == 1
    assert by(samples, "gpu_retired", "uuid")[bench.uuid(2)] == 1
    assert samples["gpu_xid_errors_total", (("uuid", bench.uuid(2)), ("xid", "79"))] == xid.count


def test_a_verdict_on_the_node_comes_with_what_was_read_of_the_driver(bench: Bench) -> None:
    bench.run()
    bench.source.fail_init(9, "Driver Not Loaded")
    bench.source.node["pci"] = {}
    bench.run(4)
    changed = [one for one in bench.history.of(VERDICT) if not one.unit][1:]
    assert [(one.before, one.after, one.check) for one in changed] == [("OK", "FAILED", "driver-init")]
    assert changed[0].facts["nvml_error"] == 9 and changed[0].facts["pci"] == {}, "none is not unknown"
    assert bench.log.kinds().count("verdict_changed") >= 1


def test_facts_are_plain_json_without_what_is_not_known() -> None:
    gpu = GpuFacts(
        "GPU-a",
        index=0,
        power=0.0,
        mig=(MigInstance("MIG-a", 1, 0, caps=(3, 4)),),
        processes=(Process(7),),
        links={"0000:1b:00.0": 5},
    )
    facts = json.loads(json.dumps(to_plain(gpu)))
    assert facts["mig"][0]["caps"] == [3, 4] and facts["processes"] == [{"pid": 7}]
    assert facts["index"] == 0 and facts["power"] == 0.0 and facts["links"] == {"0000:1b:00.0": 5}
    assert not {"temperature", "serial", "error"} & set(facts)


def test_the_way_back_is_told_too(bench: Bench) -> None:
    bench.run()
    bench.source.lose(1)
    bench.run()
    bench.source.heal()
    bench.run(4)
    assert story(bench, "retire", "restore") == [("retire", bench.uuid(1), "done"), ("restore", bench.uuid(1), "done")]
    states = [(one.before, one.after) for one in bench.history.of(VERDICT) if one.unit == bench.uuid(1)]
    assert states == [("", "OK"), ("OK", "FAILED"), ("FAILED", "OK")]


def test_a_restart_of_the_agent_is_no_change_of_a_verdict(bench: Bench) -> None:
    bench.run()
    bench.source.lose(1)
    bench.run()
    said = bench.log.kinds().count("verdict_changed")
    since = [one.at for one in bench.history.of(VERDICT) if one.after == "FAILED"]
    bench.cycle = bench.new_cycle()
    bench.run()
    again = [one for one in bench.history.of(VERDICT) if one.after == "FAILED"][1:]
    assert [(one.at, one.before, one.again) for one in again] == [(since[0], "FAILED", True)]
    assert bench.log.kinds().count("verdict_changed") == said
    retired = bench.history.of("retire")
    assert len(retired) == 2 and retired[0].at == retired[1].at and retired[1].again, (
        "written once: same unit, same time"
    )


def test_other_reasons_for_the_same_verdict_are_told(bench: Bench) -> None:
    bench.run()
    bench.source.lose(1)
    bench.run()
    bench.source.xid(1, 79)
    bench.run()
    [entry] = bench.history.of("reasons")
    assert entry.before == entry.after == "FAILED" and {one["check"] for one in entry.findings} == {"gpu-lost", "xid"}
    assert "reasons_changed" in bench.log.kinds()
    bench.run(5)
    assert len(bench.history.of("reasons")) == 1


def test_xids_of_one_cycle_are_one_entry_with_their_number(bench: Bench) -> None:
    bench.run()
    for number in (31, 13, 31, 31):
        bench.source.xid(1, number)
    bench.run()
    assert [(one.check, one.count) for one in bench.history.of(XID)] == [("31", 3), ("13", 1)]
    assert bench.log.kinds().count("xid") == 4


def test_a_drain_and_its_end_are_told_with_reason_and_author(slurmish: Bench) -> None:
    slurmish.run()
    slurmish.source.require_reset(1)
    slurmish.run()
    [drain] = slurmish.history.of(DRAIN)
    assert drain.evidence == slurmish.scheduler.state.reason and (drain.by, drain.action) == ("agent", "reset_gpu")
    slurmish.source.lose(2)
    slurmish.run()
    assert [one.action for one in slurmish.history.of("raise_drain")] == ["reboot_node"]
    slurmish.source.heal()
    slurmish.run(4)
    [resume] = slurmish.history.of(RESUME)
    assert (resume.evidence, resume.by) == (drain.evidence, "agent")


def test_a_drain_that_somebody_ended_is_told(slurmish: Bench) -> None:
    slurmish.run()
    slurmish.source.lose(1)
    slurmish.run()
    slurmish.scheduler.state = NodeState(True, "vendor comes on Monday")
    slurmish.source.heal()
    slurmish.run(10)
    assert story(slurmish, "forget_drain", "resume") == [("forget_drain", "", "done")]


def test_what_was_refused_or_only_thought_is_told_once(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "a", tmp_path / "b"):
        place.mkdir(exist_ok=True)
        place.chmod(0o755)
    refused = Bench(tmp_path / "a", spares_units=False, limits=Limits("2"))
    refused.scheduler.others = Fleet(10, 2)
    thought = Bench(tmp_path / "b", spares_units=False, policy=Policy(dry_run=True))
    for one in (refused, thought):
        one.run()
        one.source.lose(1)
        one.run(30)
    assert story(refused, DRAIN) == [("drain", "", "refused")]
    assert "max_drained" in refused.history.of(DRAIN)[0].evidence
    assert story(thought, *DEEDS) == [("retire", thought.uuid(1), "dry-run"), ("drain", "", "dry-run")]


def test_a_retirement_of_an_epilog_is_told_when_it_is_found(bench: Bench) -> None:
    bench.run()
    record = {"reason": "left by job 7", "check": "leftover", "by": "agent", "since": "1700000000", "boot_id": "boot-1"}
    with bench.store.exclusive():
        bench.store.retire(bench.uuid(3), record.items())
    bench.run(3)
    [entry] = bench.history.of("retire")
    assert (entry.unit, entry.evidence, entry.at) == (bench.uuid(3), "left by job 7", 1.7e9)


def test_what_an_administrator_did_is_told_with_the_name(bench: Bench) -> None:
    bench.run()
    done: list[Entry] = []
    bench.cycle.ports.actions.tell = done.append  # as in a command
    bench.cycle.ports.actions.retire(bench.uuid(0), "smells", "administrator", RecoveryAction.NONE, BY_ADMIN)
    bench.cycle.ports.actions.restore(bench.uuid(0), BY_ADMIN)
    for entry in done:
        assert events.append(bench.state, BY_HAND, **as_event(entry, "ada"))
    events.append(bench.state, BY_HAND, action="explode", user="eve")
    bench.run()
    retire, restore = bench.history.of("retire", "restore")
    assert (retire.unit, retire.by, retire.evidence, retire.check) == (
        bench.uuid(0),
        "admin ada",
        "smells",
        "administrator",
    )
    assert (restore.kind, restore.unit, restore.by) == ("restore", bench.uuid(0), "admin ada")
    assert retire.at == done[0].at, "the same time as in its record: told again, it is not written again"
    assert ("retire", {"by": "admin ada", "gpu_uuid": bench.uuid(0), "check": "administrator", "why": "smells"}) in (
        bench.log.lines
    )


def test_a_reload_goes_on_with_the_story(bench: Bench) -> None:
    bench.run()
    told = len(bench.history.entries)
    bench.cycle = bench.cycle.successor(bench.config, bench.cycle.ports)
    bench.run(3)
    assert len(bench.history.entries) == told
    bench.cycle.end()
    assert bench.history.closed == 1


def test_a_history_that_cannot_be_written_is_in_status_and_metrics_and_keeps_nothing_from_being_done(
    bench: Bench,
) -> None:
    bench.history.state = Keeping("database or disk is full", 3, 4096)
    bench.run()
    bench.source.lose(0)
    bench.run()
    assert list(bench.store.retired()) == [bench.uuid(0)]
    document = status_document(read_document(bench.state, SNAPSHOT), {}, {}, bench.clock.now, "boot-1", "n1")
    assert document["history_problem"] == "database or disk is full"
    assert "history is not being written: database or disk is full" in status_command._text(document)
    assert bench.cycle.snapshot is not None
    samples = parse(render(bench.cycle.snapshot, {}))
    assert [samples[name, ()] for name in ("history_up", "history_dropped_total", "history_bytes")] == [0, 3, 4096]
    bench.history.state = Keeping("", 3)
    bench.run()
    samples = parse(render(bench.cycle.snapshot, {}))
    assert samples["history_up", ()] == 1 and ("history_bytes", ()) not in samples


def test_the_history_document_of_the_contract() -> None:
    entry = Entry(1700000000.7, VERDICT, "b", "GPU-a", 0, "0000:3b:00.0", after="OK", facts={"power": 1.0})
    document = history_document("n1", [entry])
    assert document["schema"] == "gpu-nodeagent/history/1" and document["node"] == "n1"
    assert document["entries"] == [
        {
            "at": "2023-11-14T22:13:20Z",
            "kind": "verdict",
            "boot_id": "b",
            "unit": "GPU-a",
            "index": 0,
            "bus_id": "0000:3b:00.0",
            "serial": None,
            "before": None,
            "after": "OK",
            "check": None,
            "severity": None,
            "action": None,
            "by": "agent",
            "evidence": None,
            "count": 1,
            "findings": [],
            "facts": {"power": 1.0},
        }
    ]


def test_history_for_a_person() -> None:
    place = Entry(0.0, VERDICT, unit="GPU-a", index=3, bus_id="0000:3b:00.0", before="OK", after="FAILED", evidence="x")
    entries = [
        place,
        Entry(1.0, XID, unit="GPU-a", check="31", count=3, by="kernel", evidence="\x1b[2J"),
        Entry(2.0, "retire", unit="GPU-a", after="done", by="admin ada"),
        Entry(3.0, AGENT, after="started", evidence="pid=1"),
        replace(place, unit="", index=None, bus_id="", before="FAILED", after="OK", evidence=""),
    ]
    rows = [line.split() for line in text(entries).splitlines()]
    assert rows[0] == ["TIME", "GPU", "KIND", "WHAT", "BY", "WHY"]
    assert [row[1:] for row in rows[1:]] == [
        ["3", "0000:3b:00.0", "verdict", "OK", "->", "FAILED", "agent", "x"],
        ["3", "0000:3b:00.0", "xid", "31", "x3", "kernel", "?[2J"],
        ["3", "0000:3b:00.0", "retire", "done", "admin", "ada", "-"],
        ["-", "agent", "started", "agent", "pid=1"],
        ["node", "verdict", "FAILED", "->", "OK", "agent", "-"],
    ]
    assert text([]) == "nothing is recorded"


def test_a_moment_is_an_age_or_a_date() -> None:
    now = 1.7e9
    assert moment("2h", now) == now - 7200 and moment("7d", now) == now - 7 * 86400
    assert moment("2023-11-14T22:13:20Z", now) == 1.7e9 and moment("2023-11-14T23:13:20+01:00", now) == 1.7e9
    assert abs(moment("2023-11-14", now) - 1.7e9) < 2 * 86400
    for words in ("yesterday", "-2h", "2023-13-01", "5 parsecs"):
        with pytest.raises(BadRequest, match="--since"):
            moment(words, now)
