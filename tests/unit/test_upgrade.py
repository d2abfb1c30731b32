"""An upgrade while jobs hold locks: a state directory as each release wrote it, and one as none has written it yet."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nodeagent.errors import NodeAgentError, UnitsUnavailable
from nodeagent.hook import epilog, sge, slurm
from nodeagent.hook.boundary import SGE_RERUN
from nodeagent.hook.node import Node
from nodeagent.hook.prolog import record, take
from nodeagent.lock.reconcile import gone
from nodeagent.lock.record import HOLD, UNREADABLE
from nodeagent.lock.store import Store
from nodeagent.state import events
from nodeagent.state.files import Directory
from nodeagent.state.hook_conf import read_hook_conf
from nodeagent.state.verdict_file import VERDICT, VerdictFile, read_verdict
from tests.record_state import BOOT, GPUS, INSTANCES, SHARED, verdict
from tests.sge_files import SgeJob

RELEASES = sorted(path.name for path in (Path(__file__).resolve().parents[1] / "recorded" / "state").iterdir())
JOBS = {  # unit -> what its job's epilog names
    GPUS[0]: ("slurm", "lab", "41", ""),
    INSTANCES[0]: ("sge", "", "42", "3"),
    SHARED: ("slurm", "lab", "43", ""),
}


@pytest.fixture(params=RELEASES)
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Node:
    """The node on which that release ran, with owners and modes, which a repository does not keep, as it left them."""
    tmp_path.chmod(0o755)
    home = Path(__file__).resolve().parents[1] / "recorded" / "state" / request.param
    shutil.copytree(home, tmp_path / "state")
    for parent, directories, files in os.walk(tmp_path / "state"):
        for name in directories:
            os.chmod(os.path.join(parent, name), 0o755)
        for name in files:
            os.chmod(os.path.join(parent, name), 0o600 if name in ("lock", "events") else 0o644)
    (tmp_path / "state").chmod(0o755)
    (tmp_path / "config.yaml").write_text(f"state_dir: {tmp_path}/state\n")
    return Node(Directory(str(tmp_path / "state")), BOOT, None, verdict(), fresh=True)


def rewrite(node: Node, name: str) -> None:
    """Let the file be of a format that this release does not know."""
    path = Path(node.state.path) / name
    text = path.read_text()
    assert text.startswith("format=1\n")
    path.write_text(text.replace("format=1", "format=2", 1))


def everything(node: Node) -> list[str]:
    """Return what one job after the other gets, until nothing is left."""
    assert node.verdict is not None
    got: list[str] = []
    while True:
        owner = node.owner("local", f"new{len(got)}")
        try:
            got += [unit.unit for unit in take(node, node.verdict, owner, 1, 0.0)]
        except UnitsUnavailable:
            return got


def test_some_releases_are_recorded() -> None:
    assert "0.1.0" in RELEASES


def test_its_locks_are_held_and_what_it_retired_is_not_granted(node: Node) -> None:
    held = node.store.owners()
    whole_or_share = SHARED if SHARED in held else f"{SHARED}@0"
    assert {unit: (o.scheduler, o.cluster, o.job, o.task) for unit, o in held.items()} == {
        GPUS[0]: ("slurm", "lab", "41", ""),
        GPUS[1]: (HOLD, "", "", ""),
        INSTANCES[0]: ("sge", "default", "42", "3"),
        whole_or_share: ("slurm", "lab", "43", ""),
    }
    assert {(o.user, o.uid, o.pid, o.pid_start, o.boot_id, o.since) for o in held.values()} == {
        ("alice", "1000", "4242", "77", BOOT, 1_700_000_000)
    }
    assert node.store.retired()[GPUS[2]]["reason"] == "GPU2 Xid 79"
    shares = [] if whole_or_share == SHARED else [f"{SHARED}@{k}" for k in (1, 2, 3)]
    assert sorted(everything(node)) == sorted([GPUS[3], INSTANCES[1], *shares])


def test_its_jobs_release_their_own_and_nothing_else(node: Node) -> None:
    for unit, job in JOBS.items():
        before = set(node.store.owners())
        freed = set(epilog.release(node.state, *job))
        assert {name.partition("@")[0] for name in freed} == {unit}
        assert set(node.store.owners()) == before - freed
    assert {owner.scheduler for owner in node.store.owners().values()} == {HOLD}


def test_its_locks_end_with_their_boot_and_its_holds_do_not(node: Node) -> None:
    assert gone(node.store.owners(), BOOT, lambda _: "77") == {}
    over = gone(node.store.owners(), "another boot", lambda _: "77")
    assert sorted(over) == ["a" * 16, "b" * 16, "c" * 16]


def test_a_gpu_that_was_cut_up_since_is_not_granted_whole(node: Node) -> None:
    """The instance is gone, MIG mode off, and sharing too: what jobs hold of the old forms still counts."""
    assert node.verdict is not None
    lines = {line.unit: line for line in node.verdict.units}
    whole = lines[INSTANCES[1]].copy()
    whole.unit = whole.gpu
    shared = lines[SHARED].copy()
    shared.slots = 1
    node.verdict = VerdictFile(BOOT, 100.0, (whole, shared))
    knows_gpus = bool(node.store.owners()[INSTANCES[0]].gpus)
    assert everything(node) == ([] if knows_gpus else [whole.gpu])  # 0.1.0.dev1 did not write whose instance it was


def test_the_rest_of_its_state_is_read(node: Node) -> None:
    told = read_verdict(node.state)
    assert told.boot_id == BOOT and [unit.unit for unit in told.units] == [*GPUS[:4], *INSTANCES, SHARED]
    assert {unit.gpu for unit in told.units if unit.unit in INSTANCES} == {GPUS[4]}
    conf = read_hook_conf(node.state)
    assert conf.text("node_name") == "n1" and conf.gres[0].minor == 0
    assert [source.path for source in conf.sources] == ["/etc/gpu-nodeagent/config.yaml"]
    assert [event.fields.get("job") for event in events.take(node.state)] == ["41", "42", "43", None]


# -- a format that is not known ---------------------------------------------------------------------------------------


def test_a_lock_of_an_unknown_format_is_held_whatever_its_job_says(node: Node) -> None:
    units = list(node.store.owners())
    for unit in units:
        rewrite(node, f"locks/{unit}/owner")
    for job in JOBS.values():
        assert epilog.release(node.state, *job) == {}
    held = node.store.owners()
    assert {unit: owner.scheduler for unit, owner in held.items()} == dict.fromkeys(units, UNREADABLE)
    assert gone(held, "another boot", lambda _: "") == {}
    assert not set(everything(node)) & set(units)
    assert node.verdict is not None
    done = record(node, node.owner("slurm", "9"), [unit for unit in node.verdict.units if unit.unit in units])
    assert done.locked == () and done.conflicts


def test_a_retirement_of_an_unknown_format_stands(node: Node) -> None:
    rewrite(node, f"retired/{GPUS[2]}")
    assert node.store.retired()[GPUS[2]]["by"] == "unknown"
    assert GPUS[2] not in everything(node)


@pytest.mark.parametrize(("name", "kind"), [(VERDICT, "no_verdict"), ("hook.conf", "no_hook_conf")])
def test_a_verdict_or_configuration_of_an_unknown_format_counts_as_none(
    node: Node, tmp_path: Path, name: str, kind: str
) -> None:
    """Slurm's job starts, Grid Engine's is sent back; the epilog needs neither file."""
    (tmp_path / "proc/sys/kernel/random").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text(BOOT)
    conf = tmp_path / "state/hook.conf"
    conf.write_text(conf.read_text().replace("roots.proc=/proc", f"roots.proc={tmp_path}/proc"))
    rewrite(node, name)
    with pytest.raises(NodeAgentError):
        (read_verdict if name == VERDICT else read_hook_conf)(node.state)
    before = set(node.store.owners())
    events.take(node.state)
    arguments = ["--config", str(tmp_path / "config.yaml")]

    environ = {"SLURM_JOB_ID": "50", "SLURM_JOB_GPUS": "0", "SLURM_CLUSTER_NAME": "lab"}
    assert slurm.run_prolog(arguments, environ) == 0
    assert kind in [event.kind for event in events.take(node.state)]
    (tmp_path / "spool").mkdir()
    assert sge.run_prolog(arguments, SgeJob(tmp_path / "spool").environ) == SGE_RERUN
    assert set(Store(node.state).owners()) == before

    assert sge.run_epilog(arguments, {"JOB_ID": "42", "SGE_TASK_ID": "3"}) == 0
    assert set(Store(node.state).owners()) == before - {INSTANCES[0]}
