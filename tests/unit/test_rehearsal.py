"""What --dry-run runs: questions reach the scheduler, nothing else does, and no file is touched."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.cli import plan
from nodeagent.cli.deed import Deed
from nodeagent.cli.rehearsed import Untouched, rehearsed
from nodeagent.config.model import Config, Limits, Policy, Scheduler
from nodeagent.errors import CommandFailed
from nodeagent.health.finding import RecoveryAction
from nodeagent.policy.decide import BY_ADMIN, DrainRecord
from nodeagent.scheduler.rehearsal import Rehearsal, is_question
from nodeagent.state.maintenance import Maintenance
from tests.support import LaidOutNode, uuid

REASON = "gpu-nodeagent/1: a fan"


class Asked:
    """Answers as Slurm does; `rows` are nodes with their state and reason."""

    def __init__(self, **rows: str) -> None:
        self.rows = rows
        self.away = False

    def __call__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        timeout: float = 5.0,
        complaints: bool = False,
    ) -> str:
        assert argv[0] in ("/usr/bin/sinfo", "/usr/bin/scontrol"), argv
        if self.away:
            raise CommandFailed(argv, None, "")
        if argv[1:3] == ("show", "node"):
            state, _, reason = self.rows[argv[3]].partition("|")
            return f"   State={state.upper()}\n" + (f"   Reason={reason} [root@now]\n" if reason != "none" else "")
        if "-n" in argv:
            return f"@@{self.rows['n1']}\n"
        return "".join(f"@@main|{node}|{row}\n" for node, row in self.rows.items())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    one = Asked(n1="idle|none", n2="idle|none")
    monkeypatch.setattr("nodeagent.cli.rehearsed.Rehearsal", lambda: Rehearsal(one))
    return one


@pytest.fixture
def node(tmp_path: Path) -> LaidOutNode:
    return LaidOutNode(tmp_path, "slurm")


def config_of(node: LaidOutNode, kind: str = "slurm", **settings: object) -> Config:
    base = Config(state_dir=str(node.state_dir), data_dir=f"{node.config.parent}/data", node_name="n1")
    return replace(base, scheduler=Scheduler(kind=kind), **settings)  # type: ignore[arg-type]


def tree(place: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a directory: when it was changed, and what is in it."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [place, *place.rglob("*")]
    }


def text(deed: Deed) -> str:
    return "\n".join(deed.lines)


@pytest.mark.parametrize(
    ("line", "asks"),
    [
        ("/usr/bin/sinfo -N -h", True),
        ("/usr/bin/squeue -h", True),
        ("/usr/bin/scontrol -d show job 7", True),
        ("/usr/bin/scontrol ping", True),
        ("/usr/bin/scontrol update nodename=n1 state=drain", False),
        ("/usr/bin/scontrol create reservation", False),
        ("/usr/bin/scontrol -Q delete reservation", False),
        ("/usr/bin/scontrol", False),
        ("/usr/bin/sbatch --wrap x", False),
        ("/usr/bin/scancel 7", False),
        ("/usr/sbin/slurmd -G -N n1", True),
        ("/usr/sbin/slurmd -D", False),
        ("/usr/lib/gridengine/qselect -qs d", True),
        ("/usr/lib/gridengine/qconf -sconf", True),
        ("/usr/lib/gridengine/qconf -mattr exechost", False),
        ("/usr/lib/gridengine/qmod -d all.q@n1", False),
        ("/usr/bin/anything", False),
    ],
)
def test_only_what_is_known_to_ask_is_run(line: str, asks: bool) -> None:
    ran: list[tuple[str, ...]] = []

    def runner(argv: Sequence[str], *_: object) -> str:
        ran.append(tuple(argv))
        return "answer"

    rehearsal = Rehearsal(runner)
    argv = tuple(line.split())
    assert is_question(argv) == asks
    assert (rehearsal(argv) == "answer") == asks
    assert (ran, rehearsal.told) == (([argv], []) if asks else ([], [argv]))


def test_a_directory_that_is_not_touched_is_read_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "a").write_text("as it was")
    here, missing = Untouched(str(tmp_path)), Untouched(str(tmp_path / "missing"))
    for directory in (here, missing):
        directory.replace("a", "changed")
        directory.sub("b", create=True).replace("c", "made")
    assert (here.read("a"), here.names()) == ("as it was", ["a"])
    assert (here.remove("a"), here.remove("z"), missing.remove("a"), missing.names()) == (True, False, False, [])
    assert os.listdir(tmp_path) == ["a"]
    for call in (lambda: missing.read("a"), lambda: here.sub("b"), lambda: missing.sub("b")):
        with pytest.raises(FileNotFoundError):
            call()
    missing.close()


def test_every_deed_rehearsed_leaves_all_files_as_they_are(node: LaidOutNode, asked: Asked) -> None:
    node.store.retire(uuid(2), [("reason", "XID 79"), ("by", "agent")])
    place = node.config.parent
    before = tree(place)
    actions, rehearsal = rehearsed(config_of(node))
    actions.retire(uuid(1), "a fan", "administrator", RecoveryAction.NONE, BY_ADMIN)
    assert actions.restore(uuid(2), BY_ADMIN) and not actions.restore(uuid(3), BY_ADMIN)
    actions.publish_retired()
    actions.drain(REASON, RecoveryAction.NONE, BY_ADMIN, force=True)
    actions.begin_maintenance(Maintenance("alice"))
    actions.end_maintenance()
    asked.rows["n1"] = f"drained|{REASON}"
    actions.resume(BY_ADMIN)
    assert tree(place) == before
    assert rehearsal.told == [
        ("/usr/bin/scontrol", "update", "nodename=n1", "state=drain", f"reason={REASON}"),
        ("/usr/bin/scontrol", "update", "nodename=n1", "state=resume", "reason=none"),
    ]


def test_a_retirement_that_drains_the_node_is_told_with_the_words_for_the_scheduler(
    node: LaidOutNode, asked: Asked
) -> None:
    deed = plan.retire(config_of(node), uuid(1), "a fan")
    reason = f"reason={REASON}; needs none"
    assert deed.told == [("/usr/bin/scontrol", "update", "nodename=n1", "state=drain", reason)]
    assert f"'{reason}'" in text(deed) and "cannot spare one GPU" in text(deed)
    assert f"gpu-nodeagent restore {uuid(1)}" in text(deed) and not deed.refused


def test_a_retirement_that_the_limit_keeps_from_draining_says_so(node: LaidOutNode, asked: Asked) -> None:
    asked.rows["n2"] = f"drained|{REASON}"
    deed = plan.retire(config_of(node, limits=Limits("1")), uuid(1), "a fan")
    assert not deed.told and "limits.max_drained (1) is reached" in text(deed)


def test_a_node_that_is_out_already_is_told_nothing(node: LaidOutNode, asked: Asked) -> None:
    asked.rows["n1"] = "drained|fan is loud"
    deed = plan.retire(config_of(node), uuid(1), "a fan")
    assert not deed.told and "is out already and stays so: fan is loud" in text(deed)
    refused = plan.drain(config_of(node), REASON, drain)
    assert refused.refused == "the node is out of service already: fan is loud" and not refused.told


def drain(stage: plan.Stage) -> None:
    stage.actions.drain(REASON, RecoveryAction.NONE, BY_ADMIN, force=True)


def test_a_drain_says_on_which_side_of_the_limit_it_is(node: LaidOutNode, asked: Asked) -> None:
    within = plan.drain(config_of(node, limits=Limits("1")), REASON, drain)
    assert "is within the limit" in text(within) and "0 of 2 nodes are out" in text(within)
    asked.rows["n2"] = f"drained|{REASON}"
    past = plan.drain(config_of(node, limits=Limits("1")), REASON, drain)
    assert "goes past the limit" in text(past) and past.told


def test_a_scheduler_that_does_not_answer_leaves_it_unknown(node: LaidOutNode, asked: Asked) -> None:
    asked.away = True
    deed = plan.retire(config_of(node), uuid(1), "a fan")
    assert not deed.told and "slurm does not answer" in text(deed)


def test_maintenance_and_dry_run_are_told_for_they_keep_the_agent_from_draining(
    node: LaidOutNode, asked: Asked
) -> None:
    (node.config.parent / "data").mkdir(mode=0o755)
    quiet = plan.retire(config_of(node, policy=Policy(dry_run=True)), uuid(1), "a fan")
    assert not quiet.told and "policy.dry_run is on" in text(quiet)
    (node.config.parent / "data" / "maintenance").write_text("format=1\nwho=a\nwhy=\nsince=1\nuntil=0\ndrained=\n")
    assert "maintenance is on: the agent does the following when it ends" in text(
        plan.retire(config_of(node), uuid(1), "a fan")
    )


def test_grid_engine_is_told_by_the_load_sensor(node: LaidOutNode, asked: Asked) -> None:
    deed = plan.retire(config_of(node, "sge"), uuid(1), "a fan")
    for line in ("  n1:gpu:3", "  n1:gpu_faulty:1", "  n1:gpu_reason:a fan"):
        assert line in deed.lines
    assert not deed.told


def test_restoring_what_is_not_retired_is_refused_and_what_is_gives_the_node_back(
    node: LaidOutNode, asked: Asked
) -> None:
    assert plan.restore(config_of(node), uuid(1)).refused.endswith("is not retired")
    node.store.retire(uuid(1), [("reason", "a fan"), ("by", "admin"), ("who", "alice"), ("since", "0")])
    data = node.config.parent / "data"
    data.mkdir(mode=0o755)
    asked.rows["n1"] = f"drained|{REASON}"
    record = DrainRecord(REASON, scope="node")
    fields = f"reason={record.reason}\naction=none\nby=agent\nscope=node\n"
    (data / "drained").write_text(f"format=1\n{fields}")
    deed = plan.restore(config_of(node), uuid(1))
    assert deed.told == [("/usr/bin/scontrol", "update", "nodename=n1", "state=resume", "reason=none")]
    assert "it was retired by admin alice at 1970-01-01T00:00:00Z: a fan" in text(deed)
    (data / "drained").write_text(f"format=1\n{fields}".replace("by=agent", "by=admin"))
    stays = plan.restore(config_of(node), uuid(1))
    assert not stays.told and "the node stays drained" in text(stays)


def test_resuming_a_node_with_a_retired_gpu_says_that_it_is_drained_again(node: LaidOutNode, asked: Asked) -> None:
    asked.rows["n1"] = f"drained|{REASON}"
    node.store.retire(uuid(1), [("reason", "a fan"), ("by", "admin")])
    deed = plan.resume(config_of(node), lambda stage: stage.actions.resume(BY_ADMIN))
    assert "the agent drains it again at once" in text(deed) and "a fan" in text(deed) and deed.told
    asked.rows["n1"] = "drained|fan is loud"
    refused = plan.resume(config_of(node), lambda stage: stage.actions.resume(BY_ADMIN))
    assert refused.refused == "the reason is not ours: fan is loud"


def test_where_there_is_no_scheduler_it_says_so(node: LaidOutNode, asked: Asked) -> None:
    deed = plan.retire(config_of(node, "local"), uuid(1), "a fan")
    assert "  no job holds it" in deed.lines and "`exec` goes by it at once" in text(deed)
