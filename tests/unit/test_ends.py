"""What a prolog sees of other jobs' ends: freed only when the run, its processes and its open GPUs are all gone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from nodeagent.hook import ends, epilog, prolog, sge
from nodeagent.hook.node import Node
from nodeagent.lock.record import CLEANING, Owner
from nodeagent.state import events
from nodeagent.state.boot import boot_id
from nodeagent.state.hook_conf import HookConf, read_hook_conf
from nodeagent.state.verdict_file import read_verdict
from tests.sge_files import SgeJob
from tests.support import LaidOutNode, uuid
from tests.unit.test_processes import Proc

BOOT = boot_id("/proc")


class Place:
    """A node of two GPUs with a /proc and device files of the test's; GPU 0 is `nvidia0`, GPU 1 `nvidia1`."""

    def __init__(self, directory: Path, kind: str, **settings: str) -> None:
        self.proc = Proc(directory)
        Path(self.proc.root).mkdir()
        node = self.laid_out = LaidOutNode(directory, kind, gpus=2)
        node.compile(**{"roots.proc": self.proc.root, "roots.dev": str(directory), **settings})
        self.node = Node(node.state, BOOT, read_hook_conf(node.state), read_verdict(node.state), fresh=True)
        self.spool = directory / "spool"
        self.spool.mkdir()
        self.mine = SgeJob(self.spool, "9", gpus=1)

    def held(self, scheduler: str = "sge", job: str = "7", gpu: int = 0, **fields: str) -> dict[str, Owner]:
        run = fields.pop("run", f"{self.spool}/active_jobs/{job}.1")
        fields = {"boot_id": BOOT, "pid_start": "500", "cluster": "c", **fields}
        owner = Owner(scheduler, job=job, grant=f"g{job}", run=run, units=(uuid(gpu),), **fields)  # type: ignore[arg-type]
        return {uuid(gpu): owner}

    def sge_look(self, owners: Mapping[str, Owner]) -> list[str]:
        return list(ends.grid_engine(self.node, str(self.mine.directory), owners))

    def slurm_look(self, owners: Mapping[str, Owner], cluster: str = "c") -> list[str]:
        return list(ends.slurm(self.node, cluster, owners))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, "sge")


def test_a_run_that_the_exec_daemon_has_removed_is_over(place: Place) -> None:
    assert place.sge_look(place.held()) == ["g7"]
    (place.spool / "active_jobs" / "7.1").mkdir()
    assert place.sge_look(place.held()) == []


@pytest.mark.parametrize("run", ["", "/elsewhere/active_jobs/7.1", "7.1"])
def test_a_run_of_another_spool_is_not_judged(place: Place, run: str) -> None:
    assert place.sge_look(place.held(run=run)) == []


@pytest.mark.parametrize("scheduler", ["slurm", "hold", "maintenance", CLEANING])
def test_only_runs_of_grid_engine_are_judged(place: Place, scheduler: str) -> None:
    assert place.sge_look(place.held(scheduler)) == []


def test_a_listing_without_the_prologs_own_run_is_not_believed(place: Place) -> None:
    shutil.rmtree(place.mine.directory)
    assert place.sge_look(place.held()) == []
    shutil.rmtree(place.spool)
    assert place.sge_look(place.held()) == []


def test_a_shepherd_that_is_left_is_a_run_that_is_not_over(place: Place) -> None:
    place.proc.add(40)
    where = Path(place.proc.root, "40", "cwd")
    for target in (f"{place.spool}/active_jobs/7.1 (deleted)", f"{place.spool}/active_jobs/7.1/1.n1"):
        where.symlink_to(target)
        assert place.sge_look(place.held()) == []
        where.unlink()
    where.symlink_to(f"{place.spool}/active_jobs/77.1")
    assert place.sge_look(place.held()) == ["g7"]


@pytest.mark.parametrize(
    ("device", "start", "over"), [("nvidia0", 500, []), ("nvidia0", 499, ["g7"]), ("nvidia1", 600, ["g7"])]
)
def test_a_process_that_began_after_the_grant_and_has_its_gpu_open_keeps_it(
    place: Place, device: str, start: int, over: list[str]
) -> None:
    place.proc.add(41, device, start=start)
    assert place.sge_look(place.held()) == over


def test_a_gpu_without_a_device_file_is_not_judged(place: Place, tmp_path: Path) -> None:
    (tmp_path / "nvidia0").unlink()
    assert place.sge_look(place.held()) == []
    place.node.verdict = None
    assert place.sge_look(place.held(gpu=1)) == []


# -- the wait -----------------------------------------------------------------------------------------------------


def test_evidence_counts_at_the_second_look_and_only_if_it_stood_at_both(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(ends.time, "monotonic", lambda: now[0])
    said: list[dict[str, str]] = [{"a": "x", "b": "x"}, {"b": "x", "c": "x"}, {"a": "x"}]
    owners = {f"GPU-{name}": Owner("sge", grant=name, boot_id=BOOT, units=(f"GPU-{name}",)) for name in "abc"}
    judge = ends.Ends(BOOT, lambda _: said.pop(0))
    assert judge.look(owners) == {}
    assert judge.look(owners) == {} and len(said) == 2, "too soon to look again"
    now[0] += ends.LOOKS_APART
    assert judge.look(owners) == {"b": "x"}
    now[0] += ends.LOOKS_APART
    assert judge.look(owners) == {}


def test_what_is_no_job_or_is_being_cleaned_is_never_freed_on_evidence() -> None:
    for word in ("hold", "maintenance", CLEANING, "unreadable"):
        owners = {"GPU-a": Owner(word, grant="a", boot_id=BOOT, units=("GPU-a", "GPU-b"), pid="1", pid_start="0")}
        assert ends.Ends(BOOT, lambda _: {"a": "x"}).look(owners, looks=1) == {}
    cleaned = {"GPU-a": Owner(CLEANING, grant="a", boot_id="earlier", units=("GPU-a",))}
    assert list(ends.Ends(BOOT, None).look(cleaned)) == ["a"]


def test_a_prolog_that_finds_too_few_frees_what_is_over_and_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "LOOKS_APART", 0.05)
    [owner] = place.held().values()
    with place.node.store.exclusive():
        place.node.store.claim(owner)
    assert place.node.verdict is not None
    mine = place.node.owner("sge", "9")
    look = sge.evidence_of(place.node, sge.Job(place.node.conf, place.mine.environ))
    with pytest.raises(prolog.UnitsBusy):
        prolog.take(place.node, place.node.verdict, mine, 2, wait=0.0, evidence=look)
    assert place.laid_out.held() == {0: "7"}, "one look is not enough"
    taken = prolog.take(place.node, place.node.verdict, mine, 2, wait=5.0, evidence=look)
    assert len(taken) == 2 and place.laid_out.held() == {0: "9", 1: "9"}
    [event] = [e for e in events.take(place.node.state) if e.kind == "lock_reconciled"]
    assert event.fields["job"] == "7" and event.fields["units"] == uuid(0) and "removed" in event.fields["why"]


def test_a_lock_of_another_boot_gives_place_at_once(place: Place) -> None:
    [owner] = place.held("slurm", boot_id="earlier").values()
    with place.node.store.exclusive():
        place.node.store.claim(owner)
    done = prolog.record(place.node, place.node.owner("slurm", "9"), place.laid_out.units()[:1])
    assert (done.conflicts, done.locked) == ([], (uuid(0),))


# -- Slurm --------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurmish(tmp_path: Path) -> Place:
    return Place(tmp_path, "slurm", **{"scheduler.slurm.spool": f"{tmp_path}/spool"})


def test_what_slurm_gave_away_is_over_when_the_job_has_no_step_and_no_open_gpu(slurmish: Place) -> None:
    held = slurmish.held("slurm")
    assert slurmish.slurm_look(held) == ["g7"]
    for step in ("n1_7.4294967291", "n1_7.0", "other_7.4294967292"):
        (slurmish.spool / step).touch()
        assert slurmish.slurm_look(held) == []
        (slurmish.spool / step).unlink()
    for step in ("n1_77.0", "7", "hwloc_topo_7", "n1_17.4294967291"):
        (slurmish.spool / step).touch()
    assert slurmish.slurm_look(held) == ["g7"]
    slurmish.proc.add(41, "nvidia0", start=900)
    assert slurmish.slurm_look(held) == []


def test_slurms_word_is_none_on_jobs_of_another_cluster_or_where_gpus_are_shared(slurmish: Place) -> None:
    assert slurmish.slurm_look(slurmish.held("slurm"), "d") == []
    assert slurmish.slurm_look(slurmish.held("slurm", cluster=""), "") == []
    assert slurmish.slurm_look(slurmish.held("sge")) == []
    assert slurmish.node.conf is not None
    for value in ("", "/nowhere"):
        slurmish.node.conf = HookConf({**slurmish.node.conf.settings, "scheduler.slurm.spool": value})
        assert slurmish.slurm_look(slurmish.held("slurm")) == []


# -- a late epilog ------------------------------------------------------------------------------------------------


def test_an_epilog_frees_no_grant_that_was_made_after_it_began(place: Place) -> None:
    [later] = place.held(pid_start=str(10**12)).values()
    with place.node.store.exclusive():
        place.node.store.claim(later)
    assert epilog.release(place.node.state, "sge", "", "7") == {}
    assert [event.kind for event in events.take(place.node.state)] == ["late_epilog"]
    with place.node.store.exclusive():
        place.node.store.release(lambda _: True)
        later.boot_id = "earlier"  # a start counts only within its boot
        place.node.store.claim(later)
    assert list(epilog.release(place.node.state, "sge", "", "7")) == [uuid(0)]
