"""Replay: recorded facts lead to the verdicts and decisions that the agent would have come to, and to a score."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.cli.main import main
from nodeagent.config.model import Config, Health, Policy, Scheduler, Slurm
from nodeagent.config.policy_rules import Rule, SiteCommand
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.verdict import UnitVerdict, Verdict
from nodeagent.policy.decide import Drain, Raise, Restore, Resume, Retire, RunCommand
from nodeagent.replay.engine import Step, replay
from nodeagent.replay.recording import Entry, Header, Recorded, Truth, line_of
from nodeagent.replay.score import score, total
from nodeagent.replay.story import Alarm, Story, tell
from tests.unit.fake_gpu import FakeGpuSource, idle_gpu

SLURM = Config(scheduler=Scheduler(kind="slurm"))
LOST = idle_gpu(1).uuid


@pytest.fixture
def source() -> Iterable[FakeGpuSource]:
    fake = FakeGpuSource(2)
    yield fake
    fake.close()


def sweeps(source: FakeGpuSource, count: int, begin: float = 0.0) -> list[Recorded]:
    """Return so many sweeps, ten seconds apart."""
    return [Recorded(begin + 10.0 * at, replace(source.sample(), xids=source.take_xids())) for at in range(count)]


def losing(source: FakeGpuSource) -> list[Recorded]:
    """Two good sweeps, two in which a GPU is lost, six good ones."""
    seen = sweeps(source, 2)
    source.lose(1)
    seen += sweeps(source, 2, 20.0)
    source.heal()
    return seen + sweeps(source, 6, 40.0)


def decisions(story: Story) -> list[tuple[float, type]]:
    return [(at, type(decision)) for at, decision in story.decisions]


def test_a_scheduler_that_spares_units_loses_the_unit_only(source: FakeGpuSource) -> None:
    story = tell(replay(losing(source), Config(), 10.0))
    assert [(one.at, one.unit, one.before, one.after) for one in story.changes] == [
        (20.0, LOST, "OK", "FAILED"),
        (60.0, LOST, "FAILED", "OK"),
    ]
    assert decisions(story) == [(20.0, Retire), (60.0, Restore)]
    assert (story.sweeps, story.boots, story.begin, story.end) == (10, 1, 0.0, 90.0)
    assert story.alarms == [Alarm(LOST, "gpu-lost", Severity.ERROR, 20.0, 50.0)]


def test_slurm_loses_the_node(source: FakeGpuSource) -> None:
    story = tell(replay(losing(source), SLURM, 10.0))
    assert decisions(story) == [(20.0, Retire), (20.0, Drain), (60.0, Restore), (60.0, Resume)]
    drain = story.decisions[1][1]
    assert isinstance(drain, Drain) and drain.action is RecoveryAction.REBOOT_NODE


def test_a_holder_spares_slurms_node(source: FakeGpuSource) -> None:
    holder = replace(SLURM, scheduler=Scheduler(kind="slurm", slurm=Slurm(retire="holder")))
    assert decisions(tell(replay(losing(source), holder, 10.0))) == [(20.0, Retire), (60.0, Restore)]


def test_the_configuration_decides(source: FakeGpuSource) -> None:
    seen = losing(source)
    tells = replace(Config(), policy=Policy(reboot_node="tell"))
    assert decisions(tell(replay(seen, tells, 10.0))) == []
    strict = replace(Config(), health=Health(strikes={"gpu-lost": 3}))
    assert decisions(tell(replay(seen, strict, 10.0))) == []
    dry = replace(Config(), policy=Policy(dry_run=True))
    assert decisions(tell(replay(seen, dry, 10.0))) == [(20.0, Retire), (60.0, Restore)], "what would be done"


def test_what_is_out_stays_so_over_a_reboot_until_it_was_seen_well(source: FakeGpuSource) -> None:
    seen = sweeps(source, 2)
    source.xid(1, 79)
    seen += sweeps(source, 1, 20.0)
    source.boot_id = "boot-2"
    seen += sweeps(source, 6, 200.0)
    story = tell(replay(seen, SLURM, 10.0))
    assert story.boots == 2
    assert decisions(story) == [(20.0, Retire), (20.0, Drain), (230.0, Restore), (230.0, Resume)]


def test_a_drain_is_raised(source: FakeGpuSource) -> None:
    seen = sweeps(source, 2)
    source.xid(1, 95)
    seen += sweeps(source, 1, 20.0)
    source.lose(0)
    seen += sweeps(source, 1, 30.0)
    assert (30.0, Raise) in decisions(tell(replay(seen, SLURM, 10.0)))


def test_a_node_that_was_given_back_can_be_drained_again(source: FakeGpuSource) -> None:
    seen = losing(source)
    seen += [replace(one, at=one.at + 100.0) for one in losing(source)]
    once = [Retire, Drain, Restore, Resume]
    assert [kind for _, kind in decisions(tell(replay(seen, SLURM, 10.0)))] == once * 2


def test_an_alarm_keeps_the_worst_that_was_found_on_its_way() -> None:
    def step(at: float, *severities: Severity) -> Step:
        reasons = tuple(Finding("gpu-lost", LOST, severity, "") for severity in severities)
        return Step(at, "b", Verdict("b", at, (UnitVerdict(LOST, "FAILED" if reasons else "OK", at, reasons),)), ())

    story = tell([step(0.0, Severity.ERROR, Severity.UNKNOWN), step(10.0, Severity.WARNING), step(20.0, Severity.INFO)])
    assert story.alarms == [Alarm(LOST, "gpu-lost", Severity.ERROR, 0.0, 10.0)]


def test_facts_are_judged_in_order_and_as_they_come(source: FakeGpuSource) -> None:
    seen = iter(sweeps(source, 3))
    steps = replay(seen, Config(), 10.0)
    assert next(steps).at == 0.0
    assert len(list(seen)) == 2, "no more was taken than was needed"


# ---- the score --------------------------------------------------------------------------------------------------


def scored(source: FakeGpuSource, *truths: Truth):  # type: ignore[no-untyped-def]  # noqa: ANN201
    return score(tell(replay(losing(source), SLURM, 10.0)), truths, 10.0)


def test_a_fault_that_was_found(source: FakeGpuSource) -> None:
    found = scored(source, Truth(LOST, "gpu-lost", 12.0, 40.0))
    assert (found.recall, found.precision, found.delays, found.median_delay) == (1.0, 1.0, (8.0,), 8.0)
    assert (found.missed, found.false_alarms, found.false_actions) == ((), (), ())
    assert found.node_days == pytest.approx(100.0 / 86400)
    assert found.false_alarms_a_day == 0.0


@pytest.mark.parametrize(
    "truth",
    [
        Truth(idle_gpu(0).uuid, "gpu-lost", 12.0, 40.0),
        Truth(LOST, "ecc-uncorrected", 12.0, 40.0),
        Truth(LOST, "gpu-lost", 0.0, 19.0),
        Truth(LOST, "gpu-lost", 51.0, 90.0),
        Truth("", "gpu-lost", 12.0, 40.0),
    ],
    ids=["another GPU", "another check", "before", "after", "the node"],
)
def test_a_fault_that_was_missed(source: FakeGpuSource, truth: Truth) -> None:
    assert scored(source, truth).recall == 0.0
    assert scored(source, truth).missed == (truth,)


def test_any_check_finds_a_fault_that_is_named_after_none(source: FakeGpuSource) -> None:
    assert scored(source, Truth(LOST, "somebody pulled the cable", 12.0)).recall == 1.0


def test_alarms_and_actions_without_a_fault_are_false(source: FakeGpuSource) -> None:
    known = scored(source)
    assert (known.recall, known.precision) == (None, 0.0)
    assert [alarm.check for alarm in known.false_alarms] == ["gpu-lost"]
    assert [type(decision) for _, decision in known.false_actions] == [Retire, Drain]
    assert known.false_actions_a_day == pytest.approx(2 * 864)
    elsewhere = scored(source, Truth(idle_gpu(0).uuid, "xid", 12.0, 40.0))
    assert [type(decision) for _, decision in elsewhere.false_actions] == [Retire, Drain]


def test_that_others_are_not_read_has_its_reason_in_the_gpu_that_hangs(source: FakeGpuSource) -> None:
    seen = sweeps(source, 2)
    source.hang(0)
    seen += sweeps(source, 4, 20.0)
    known = score(tell(replay(seen, Config(), 10.0)), [Truth(idle_gpu(0).uuid, "driver-unresponsive", 12.0)], 10.0)
    assert (known.recall, known.false_alarms, known.delays) == (1.0, (), (18.0,))


def test_several_recordings_together(source: FakeGpuSource) -> None:
    right, wrong = scored(source, Truth(LOST, "gpu-lost", 12.0, 40.0)), scored(source)
    both = total([right, wrong])
    assert (both.recall, both.precision, len(both.false_actions)) == (1.0, 0.5, 2)
    assert both.node_days == pytest.approx(200.0 / 86400)
    assert total([]).recall is None and total([]).false_alarms_a_day is None


# ---- the command ------------------------------------------------------------------------------------------------


def written(path: Path, entries: Sequence[Entry]) -> Path:
    text = "".join(f"{line_of(entry)}\n" for entry in [Header("0.2", "n1"), *entries])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(f"state_dir: {tmp_path}/state\nscheduler: {{kind: slurm}}\n")
    return str(path)


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = main(words)
    return status, capsys.readouterr().out


def test_replay_prints_the_story(
    source: FakeGpuSource, tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "r.jsonl", losing(source)[:4])
    status, text = ask(capsys, "replay", str(path), "--config", config)
    assert status == 2, "FAILED at the end"
    lines = text.splitlines()
    assert lines[0] == "n1: 4 sweeps in 00:00:30"
    assert [line.split()[:2] for line in lines[1:4]] == [["00:00:20", word] for word in ("GPU", LOST, "node")]
    assert "OK -> FAILED: GPU 1 0000:2b:00.0 is lost" in lines[1]
    assert "drain: gpu-nodeagent/1: " in lines[3]
    assert lines[4] == f"at the end: FAILED; {LOST} retired; node drained"
    assert len(lines) == 5


def test_replay_measures_against_the_truth(
    source: FakeGpuSource, tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = losing(source)
    path = written(tmp_path / "r.jsonl.gz", [Truth(LOST, "gpu-lost", 12.0, 40.0), *seen])
    status, text = ask(capsys, "replay", str(path), "--config", config)
    assert (status, "1 of 1 found" in text, "recall 100.0%" in text, "8.0 s" in text) == (0, True, True, True)
    path = written(tmp_path / "wrong.jsonl", [*seen, Truth(LOST, "xid", 12.0, 40.0)])
    status, text = ask(capsys, "replay", str(path), "--config", config, "--json")
    document = json.loads(text)
    assert (status, document["schema"], document["verdict"]) == (2, "gpu-nodeagent/replay/1", "OK")
    assert document["score"]["missed"] == [{"fault": "xid", "unit": LOST, "at": 12.0}]
    assert [one["decision"] for one in document["decisions"]] == ["retire", "drain", "restore", "resume"]
    assert [(one["from"], one["to"], one["index"]) for one in document["changes"]] == [
        ("OK", "FAILED", 1),
        ("FAILED", "OK", 1),
    ]
    assert document["left"] == []


def test_a_false_drain_is_a_failure_of_the_replay(
    source: FakeGpuSource, tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "r.jsonl", [*losing(source), Truth(LOST, "gpu-lost", 55.0, 56.0)])
    status, text = ask(capsys, "replay", str(path), "--config", config, "--json")
    known = json.loads(text)["score"]
    assert (status, known["false_alarms"], known["false_actions"], known["precision"]) == (2, 1, 2, 0.0)


def test_healthy_without_a_truth(
    source: FakeGpuSource, tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "r.jsonl", sweeps(source, 3))
    assert ask(capsys, "replay", str(path), "--config", config) == (0, "n1: 3 sweeps in 00:00:20\nat the end: OK\n")
    empty = written(tmp_path / "e.jsonl", [])
    assert ask(capsys, "replay", str(empty), "--config", config)[0] == 3, "nothing is known"


@pytest.mark.parametrize(("content", "status"), [(b"", 64), (b"\xff\xfe{}", 64), (b"{}\n", 64), (None, 69)])
def test_what_cannot_be_replayed_is_said_in_one_line(
    content: bytes | None, status: int, tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert main(["replay", str(path), "--config", config]) == status
    said = capsys.readouterr()
    assert said.out == "" and str(path) in said.err and said.err.count("\n") == 1


def test_a_cut_or_false_archive_is_said(
    source: FakeGpuSource, tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "r.jsonl.gz", sweeps(source, 3))
    path.write_bytes(path.read_bytes()[:-20])
    assert main(["replay", str(path), "--config", config]) == 64
    path.write_bytes(b"no archive")
    assert main(["replay", str(path), "--config", config]) == 64


@pytest.mark.parametrize("words", [["--for", "1h"], ["--interval", "1s"], ["--anonymize"]])
def test_options_of_a_recording_want_a_recording(
    words: list[str], config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *words, "--config", config]) == 64
    assert "--record" in capsys.readouterr().err


def test_a_replay_shows_what_rules_would_do_and_which_commands_would_run(
    source: FakeGpuSource, tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = tmp_path / "ran"
    with open(config, "a") as file:
        file.write(
            f"policy:\n  dry_run: true\n  commands: {{page: {{command: [/usr/bin/touch, {ran}]}}}}\n"
            "  rules: [{check: gpu-lost, do: drain, drain_when: idle, run: page}]\n"
        )
    path = written(tmp_path / "r.jsonl", losing(source))
    _, text = ask(capsys, "replay", str(path), "--config", config, "--json")
    assert [(one["at"], one["decision"], one.get("command")) for one in json.loads(text)["decisions"]] == [
        *((20.0, "retire", None), (20.0, "drain", None), (20.0, "run_command", "page")),
        *((60.0, "restore", None), (60.0, "resume", None)),
    ]
    assert "run_command: page for GPU 1" in ask(capsys, "replay", str(path), "--config", config)[1]
    assert not ran.exists()


def test_a_command_runs_again_after_a_reboot(source: FakeGpuSource) -> None:
    source.lose(1)
    seen = sweeps(source, 3)
    again = [replace(one, at=one.at + 60.0, facts=replace(one.facts, boot_id="another")) for one in seen]
    rules = Policy(rules=(Rule(run="page"),), commands={"page": SiteCommand(("/bin/true",))})
    story = tell(replay([*seen, *again], Config(policy=rules), 10.0))
    assert [at for at, kind in decisions(story) if kind is RunCommand] == [0.0, 60.0]
