"""A node with jobs at work, where one more hook is to be struck; and what must hold afterwards."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from nodeagent.hook import sge, slurm
from nodeagent.lock.cleaning import WAKE, listen
from nodeagent.lock.reconcile import gone
from nodeagent.lock.record import CLEANING, Owner, decode_owner
from nodeagent.lock.store import Store
from nodeagent.lock.unit import is_unit
from nodeagent.state.boot import boot_id, start_time
from tests.contract.crash_trace import Ended, Hook, in_child
from tests.sge_files import SgeJob
from tests.support import LaidOutNode, uuid

ROOT = Path(__file__).resolve().parents[2]
GPUS = 5
JOB, OTHER, NEXT, LAST = "603", "7", "500", "600"
"""The job whose hook is struck, one that runs all the while on the last GPU, and two that come later."""
_VARYING = re.compile(
    r"(?<=owner\.)\d+|(?<=new-)[0-9a-f]{16}|(?<=grant=)[0-9a-f]{16}|(?<=old-)\d+|(?<=pid=)\d+|(?<=start=)\d+|(?<=since=)\d+|^\d+\.\d+",
    re.M,
)
PROMISED = 2.0
"""Seconds within which every hook ends; strace's own time is in it too."""
HOOKS = {
    "prolog/slurm": slurm.run_prolog,
    "epilog/slurm": slurm.run_epilog,
    "prolog/sge": sge.run_prolog,
    "epilog/sge": sge.run_epilog,
}


class Scene:
    """One hook of one job on a node that `restore` puts back to how it was.

    The job gets GPUs 0 and 1. Job 7 runs on GPU 4. With `first` nothing was ever locked on this node; else its prolog
    finds what an earlier crash left (a lock without owner on GPU 0, prepared and discarded directories) and GPU 2 still
    locked by an earlier run of the same job; its epilog finds the same but for GPUs 0 to 2, and a lock that a real
    prolog made. With `agent` one listens to epilogs: then these hand their units over instead of freeing them.
    """

    def __init__(self, directory: Path, stub: str, first: bool = False, agent: bool = False) -> None:
        self.stub = stub
        self.agent = agent
        self._attendant = -1
        self.kind = stub.rpartition("/")[2]
        self.node = LaidOutNode(directory, self.kind, GPUS, "hooks: {wait_for_units: 0}\n")
        self.locks = self.node.state_dir / "locks"
        self.spool = directory / "spool"
        self.sge_job = SgeJob(self.spool, JOB, gpus=2)
        self.environ = self.job_environ(JOB, "0-1", 2)
        self.first = first
        if not first:
            self._lay_out()
        self.checked: set[str] = set()
        self._seed = directory / "seed"
        self._after = directory / "after"
        shutil.copytree(self.node.state_dir, self._seed)
        self.hook = Hook([*self._argv(stub)], self.environ, directory / "strace.log")
        self.restore()

    @property
    def unusual(self) -> bool:
        return self.first or self.agent

    def _argv(self, stub: str) -> list[str]:
        return [str(ROOT / stub), "--config", str(self.node.config)]

    def _lay_out(self) -> None:
        self.node.hold([4], self.kind, OTHER)
        if self.stub.startswith("prolog"):
            self.node.hold([2], self.kind, JOB)
            (self.locks / uuid(0)).mkdir()
            (self.node.state_dir / f"reruns.{JOB}.").write_text("..")
        else:
            subprocess.run(self._argv(f"prolog/{self.kind}"), env=self.environ, check=True)
            assert self.node.held() == {0: JOB, 1: JOB, 4: OTHER}
        for name, text in ((f".new-0123456789abcdef-{uuid(1)}", "format=1\nsche"), (f".old-99-{uuid(3)}", None)):
            (self.locks / name).mkdir()
            if text is not None:
                (self.locks / name / "owner").write_text(text)

    def job_environ(self, job: str, indices: str, count: int) -> dict[str, str]:
        """Return what a scheduler gives the hooks of a job: its list of GPUs (Slurm), or its files (Grid Engine)."""
        if self.kind == "slurm":
            return {"SLURM_JOB_ID": job, "SLURM_JOB_GPUS": indices, "SLURM_JOB_UID": "1000", "SLURM_JOB_USER": "alice"}
        return SgeJob(self.spool, job, gpus=count).environ

    def _put(self, saved: Path) -> None:
        """Empty the state directory and fill it again: it stays the directory that it is."""
        for child in self.node.state_dir.iterdir():
            if child.is_dir():
                shutil.rmtree(child)
            else:
                child.unlink()
        shutil.copytree(saved, self.node.state_dir, dirs_exist_ok=True, ignore=shutil.ignore_patterns(WAKE))
        self._listen()

    def _listen(self) -> None:
        """Be the agent, whose end of the FIFO is there all the while."""
        if self.agent:
            if self._attendant >= 0:
                os.close(self._attendant)
            self._attendant = listen(self.node.state)

    def restore(self) -> None:
        """Put everything back to how it was before the hook ran."""
        self._put(self._seed)
        (self.sge_job.directory / "environment").write_text("HOME=/home/alice\n")
        self._other = self._others_lock()
        self._as_put = self._stamps()

    def untouched(self) -> bool:
        """Say whether nothing at all was changed since the last `restore`."""
        return self._stamps() == self._as_put

    def _stamps(self) -> list[tuple[str, int, int]]:
        found = [(str(path), path.lstat()) for path in sorted(self.node.state_dir.rglob("*"))]
        return [(path, status.st_ino, status.st_mtime_ns) for path, status in found]

    def _others_lock(self) -> object:
        """Return all by which a change of the other job's lock could be noticed, reading it apart."""
        found = []
        for path in (self.locks / uuid(4), self.locks / uuid(4) / "owner"):
            if path.exists():
                status = path.stat()
                found.append((status.st_ino, status.st_mode, status.st_mtime_ns, path.is_file() and path.read_bytes()))
        return found

    # -- what must hold ---------------------------------------------------------------------------------------------

    def check_at_once(self, one_grant: bool = True) -> None:
        """Each lock complete or without owner, one grant a job, others' locks and the agent's files as they were.

        A job may keep an older grant beside its new one only where that grant's owner could not be read.
        """
        grants: dict[str, str] = {}
        for name in os.listdir(self.locks) if self.locks.exists() else ():
            path = self.locks / name / "owner"
            if is_unit(name) and path.exists():
                owner = decode_owner(name, path.read_text())
                assert name in owner.units
                other = grants.setdefault(owner.job, owner.grant)
                assert not one_grant or other == owner.grant, "two grants of one job"
        assert grants.keys() <= {JOB, OTHER}
        assert self._others_lock() == self._other
        for name in ("hook.conf", "verdict"):
            assert (self.node.state_dir / name).read_bytes() == (self._seed / name).read_bytes()
        events = self.node.state_dir / "events"
        assert not events.exists() or events.read_bytes()[-1:] in (b"", b"\n")

    def whole(self) -> bool:
        """Say whether the struck job holds, of each of its grants, all units; one in cleaning is nobody's part."""
        owners = self.node.store.owners()
        return all(
            unit in owners and owners[unit].grant == owner.grant
            for owner in owners.values()
            if owner.job == JOB and owner.scheduler != CLEANING
            for unit in owner.units
        )

    def check_afterwards(self) -> None:
        """Whoever comes next finds the node in order: the agent, another job, the same job again.

        What was left is all that counts for that, so each state is looked at once, however many calls leave it.
        """
        state = self._fingerprint()
        if state in self.checked:
            return
        shutil.rmtree(self._after, ignore_errors=True)
        shutil.copytree(self.node.state_dir, self._after, ignore=shutil.ignore_patterns(WAKE))
        if self.agent:
            self._check_cleaned()
            self._put(self._after)
        self._check_reconciled()
        self._put(self._after)
        self._check_another_job()
        self._put(self._after)
        self._check_same_job()
        self.checked.add(state)

    def _fingerprint(self) -> str:
        """Return the state as text, but for what differs in each run: numbers of processes, grants, times."""
        text = ""
        for path in sorted(self.node.state_dir.rglob("*")):
            content = path.read_text() if path.is_file() else ""
            text += f"{path.relative_to(self.node.state_dir)} {path.stat().st_mode:o}\n{content}\n"
        return _VARYING.sub("*", text)

    def _reconcile(self, ended: Mapping[str, str]) -> None:
        """Do what agent.reconciler does each cycle."""
        store = Store(self.node.state)
        with store.exclusive():
            store.sweep()
            over = gone(store.owners(), boot_id("/proc"), start_time, ended)
            store.release(lambda owner: owner.grant in over)

    def _clean(self) -> None:
        """Do what agent.cleaner does with units that are clean."""
        store = Store(self.node.state)
        with store.exclusive():
            store.release(lambda owner: owner.scheduler == CLEANING)

    def _check_cleaned(self) -> None:
        """The agent frees what it was given, and of the rest nothing: that is the job's till its epilog comes again."""
        before = self.node.store.owners()
        self._clean()
        left = {unit: owner.scheduler for unit, owner in before.items() if owner.scheduler != CLEANING}
        assert {unit: owner.scheduler for unit, owner in self.node.store.owners().items()} == left
        self._hook("epilog", JOB, "0-1", 2)
        self._clean()
        assert self.node.held() == self._others()

    def _others(self) -> dict[int, str]:
        return {} if self.first else {4: OTHER}

    def _no_debris(self) -> None:
        assert all(is_unit(name) and (self.locks / name / "owner").exists() for name in os.listdir(self.locks))

    def _check_reconciled(self) -> None:
        self._reconcile({})
        self._no_debris()
        assert self.whole(), "part of a grant is left"
        mine: dict[str, Owner] = {u: owner for u, owner in self.node.store.owners().items() if owner.job == JOB}
        self._reconcile({owner.grant: "its job is over" for owner in mine.values()})
        self._clean()
        assert self.node.held() == self._others()

    def _check_another_job(self) -> None:
        self._clean()
        taken = self.node.held()
        self._hook("prolog", NEXT, "3", 1)
        held = self.node.held()
        (unit,) = (index for index, job in held.items() if job == NEXT)
        assert held == {**taken, unit: NEXT} and unit not in taken, "a unit with two owners"
        self._no_debris()
        self._hook("epilog", JOB, "0-1", 2)
        assert self.node.held() == {**self._others(), unit: NEXT}
        free = [index for index in range(GPUS) if index not in self.node.held()]
        self._hook("prolog", LAST, ",".join(map(str, free)), len(free))
        assert self.node.held() == {**self._others(), unit: NEXT, **dict.fromkeys(free, LAST)}, "a unit is lost"

    def _check_same_job(self) -> None:
        self._hook("prolog", JOB, "0-1", 2)
        held = self.node.held()
        assert list(held.values()).count(JOB) == 2 and self.whole()
        assert held == {**self._others(), **{index: JOB for index, job in held.items() if job == JOB}}
        self._no_debris()
        self._hook("epilog", JOB, "0-1", 2)
        assert self.node.held() == self._others()

    def _hook(self, when: str, job: str, indices: str, count: int) -> None:
        hook = HOOKS[f"{when}/{self.kind}"]
        arguments = ["--config", str(self.node.config)]
        self._clean()  # units that wait for the agent are freed by it, in the time that a prolog gives it
        assert in_child(hook, arguments, self.job_environ(job, indices, count)) == 0
        self._clean()

    def check_refused(self, ended: Ended, loaded: bool = True, unread: bool = False) -> None:
        """The status is the contract's, in time; the job has all its units or none; it does not fail in silence.

        One failure is silent: whose a lock is cannot be said while its owner is `unread`, so it is left alone.
        Before the library is `loaded` there is only syslog to tell, which no test listens to.
        """
        assert ended.status in ((0, 99) if self.stub == "prolog/sge" else (0,))
        assert ended.seconds < PROMISED
        assert ended.out == ""
        owners = self.node.store.owners()
        mine = {i for i, job in self.node.held().items() if job == JOB and owners[uuid(i)].scheduler == self.kind}
        if self.kind == "sge":
            assert ended.err == ""  # it would be in the user's output
            if self.stub == "prolog/sge" and ended.status == 0:
                assert mine in ({0, 1}, {0, 1, 2} if unread else {0, 1})
                assert self.sge_job.exported()["CUDA_VISIBLE_DEVICES"] == "0,1"
        elif loaded and not unread and mine != ({0, 1} if self.stub == "prolog/slurm" else set()):
            events = self.node.state_dir / "events"
            assert "gpu-nodeagent: " in ended.err or (events.exists() and "why=" in events.read_text())
