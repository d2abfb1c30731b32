"""What the agent does about rules: which command is begun when, what waits for an idle node, what a dry run leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.agent.site_commands import COMMANDS, document
from nodeagent.config.model import Policy
from nodeagent.config.policy_rules import Rule, SiteCommand
from nodeagent.history.entry import DRAIN, DRY_RUN, WAITS
from nodeagent.lock.record import Owner
from nodeagent.policy.decide import RunCommand
from nodeagent.state.documents import read_document
from tests.unit.test_cycle import Bench

PAGE = {"page": SiteCommand(("/nonexistent/page",))}
ON_LOST = Rule(check=("gpu-lost",), run="page")


class Begun:
    """Keeps what is begun instead of running it."""

    def __init__(self) -> None:
        self.begun: set[tuple[str, str]] = set()
        self.runs: list[RunCommand] = []

    def begin(self, decision: RunCommand) -> None:
        self.begun.add(decision.key)
        self.runs.append(decision)

    def forget(self, keys: object) -> None:
        self.begun.difference_update(keys)  # type: ignore[arg-type]


def bench_of(directory: Path, policy: Policy, spares_units: bool = True) -> tuple[Bench, Begun]:
    directory.chmod(0o755)
    bench, begun = Bench(directory, spares_units, policy=policy), Begun()
    bench.cycle._decider.commands = begun
    return bench, begun


def test_a_command_is_begun_once_as_long_as_the_fault_stands(tmp_path: Path) -> None:
    bench, begun = bench_of(tmp_path, Policy(rules=(ON_LOST,), commands=PAGE))
    bench.run(3)
    assert begun.runs == []
    bench.source.lose(1)
    bench.run(4)
    [run] = begun.runs
    assert (run.command, run.unit, run.do, run.bad_units) == ("page", bench.uuid(1), "retire", 1)
    assert bench.uuid(1) in bench.store.retired(), "and what is done without the rule is done"
    bench.source.lose(2)
    bench.run(2)
    assert [run.unit for run in begun.runs] == [bench.uuid(1), bench.uuid(2)]
    bench.source.heal()
    bench.run(4)
    assert begun.begun == set()
    bench.source.lose(1)
    bench.run(2)
    assert [run.unit for run in begun.runs] == [bench.uuid(1), bench.uuid(2), bench.uuid(1)]
    assert bench.cycle._decider.counts["run_command", "done"] == 3


def test_a_fault_of_which_nothing_is_known_for_a_while_is_not_another_one(tmp_path: Path) -> None:
    bench, begun = bench_of(tmp_path, Policy(rules=(Rule(check=("gpu-lost",), severity="info", run="page"),)))
    begun.begun = {("page", bench.uuid(1)), ("page", bench.uuid(2)), ("page", "")}
    bench.source.hang(1)
    bench.run(2)
    bench.source.heal()
    assert bench.cycle.snapshot is not None
    states = {unit.uuid: unit.state for unit in bench.cycle.snapshot.verdict.units}
    unknown = {unit for unit, state in states.items() if state == "UNKNOWN"}
    unknown |= {""} if bench.cycle.snapshot.verdict.node_state == "UNKNOWN" else set()
    assert unknown and {unit for _, unit in begun.begun} == unknown & {bench.uuid(1), bench.uuid(2), ""}
    bench.run(5)
    assert begun.begun == set()


def test_an_agent_that_starts_again_begins_no_command_again_and_a_reboot_does(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    bench = Bench(tmp_path, policy=Policy(rules=(ON_LOST,), commands=PAGE))
    bench.source.lose(1)
    bench.run(2)
    key = ("page", bench.uuid(1))
    assert bench.cycle._commands.begun == {key}
    assert read_document(bench.state, COMMANDS) == {"begun": [list(key)]}
    bench.cycle = bench.new_cycle()
    assert bench.cycle._commands.begun == {key}
    bench.run(2)
    assert bench.log.kinds().count("run_command") == 1
    bench.state.remove(COMMANDS)  # as a reboot does with all of state_dir
    bench.cycle = bench.new_cycle()
    bench.run(1)
    assert bench.log.kinds().count("run_command") == 2


def test_a_command_reads_what_happened(tmp_path: Path) -> None:
    bench, begun = bench_of(tmp_path, Policy(rules=(Rule(check=("gpu-lost",), do="drain", run="page"),)))
    bench.source.lose(1)
    bench.run()
    [run] = begun.runs
    told = document(run, "n1", 0.0)
    assert {key: told[key] for key in ("schema", "time", "node", "command", "do", "check", "severity", "action")} == {
        **{"schema": "gpu-nodeagent/command/1", "time": "1970-01-01T00:00:00Z", "node": "n1", "command": "page"},
        **{"do": "drain", "check": "gpu-lost", "severity": "error", "action": run.finding.action.word},
    }
    assert told["gpu"]["uuid"] == bench.uuid(1) and told["gpu"]["index"] == 1 and told["gpu"]["verdict"] == "FAILED"
    assert told["evidence"] == run.finding.evidence and told["findings"][0]["check"] == "gpu-lost"
    assert told["bad_gpus"] == 1


@pytest.mark.parametrize("when", ["idle", "now"])
def test_a_drain_waits_for_jobs_only_where_it_is_to(tmp_path: Path, when: str) -> None:
    bench, _ = bench_of(tmp_path, Policy(drain_when=when), spares_units=False)
    job = Owner("slurm", job="7", grant="g", boot_id=bench.source.boot_id, units=(bench.uuid(0),))
    with bench.store.exclusive():
        bench.store.claim(job)
    bench.source.lose(1)
    bench.run(8)
    assert bench.scheduler.state.drained is (when == "now")
    assert bench.uuid(1) in bench.store.retired(), "what is retired is refused meanwhile"
    waits = [entry for entry in bench.history.of(DRAIN) if entry.after == WAITS]
    assert len(waits) == bench.log.kinds().count("drain_waits") == (when == "idle"), "told once"
    with bench.store.exclusive():
        bench.store.release(lambda owner: True)
    bench.run()
    assert bench.scheduler.state.drained and bench.scheduler.drains == 1


def test_a_hold_or_a_unit_that_is_being_cleaned_is_no_job_to_wait_for(tmp_path: Path) -> None:
    bench, _ = bench_of(tmp_path, Policy(drain_when="idle"), spares_units=False)
    for at, word in enumerate(("hold", "maintenance", "cleaning")):
        with bench.store.exclusive():
            bench.store.claim(Owner(word, grant=f"g{at}", boot_id=bench.source.boot_id, units=(bench.uuid(at),)))
    bench.source.lose(3)
    bench.run()
    assert bench.scheduler.state.drained


def test_a_lock_that_cannot_be_read_is_one_to_wait_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, _ = bench_of(tmp_path, Policy(drain_when="idle"), spares_units=False)
    bench.source.lose(3)

    def broken() -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(bench.cycle.ports.actions, "busy", broken)
    bench.run()
    assert not bench.scheduler.state.drained
    monkeypatch.undo()
    bench.run()
    assert bench.scheduler.state.drained


def test_a_dry_run_says_each_thing_once_and_does_none(tmp_path: Path) -> None:
    rules = (Rule(check=("gpu-lost",), do="drain", run="page"),)
    bench, begun = bench_of(tmp_path, Policy(rules=rules, commands=PAGE, drain_when="idle", dry_run=True))
    bench.source.lose(1)
    bench.run(10)
    assert (begun.runs, bench.store.retired(), bench.scheduler.drains) == ([], {}, 0)
    assert not (tmp_path / "state" / COMMANDS).exists() and not list((tmp_path / "data").iterdir())
    told = [(entry.kind, entry.after) for entry in bench.history.of("retire", DRAIN, "run_command")]
    assert sorted(told) == [("drain", DRY_RUN), ("retire", DRY_RUN), ("run_command", DRY_RUN)]
    counts = bench.cycle._decider.counts
    assert {key: count for key, count in counts.items() if count} == {(kind, DRY_RUN): 1 for kind, _ in told}
