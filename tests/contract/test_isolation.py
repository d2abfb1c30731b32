"""Isolation on real cgroups of both versions and on device files: who can open what, and that nothing is left of it.

GPUs 0 to 3 are character devices that anybody can open; the job gets GPU 0, so 1 to 3 are others'.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.agent.reconciler import Reconciler
from nodeagent.errors import NotIsolated
from nodeagent.isolation import cgroup_v2, confine
from nodeagent.isolation.cgroup import PREFIX, directory_of
from nodeagent.isolation.confine import undo_gone
from nodeagent.isolation.method import Method
from nodeagent.isolation.record import Confinement
from nodeagent.state import events
from nodeagent.state.boot import start_time
from tests.clusters.process import open_directory
from tests.contract.crash_trace import MEMORY, Call, Ended, Hook, from_first_naming
from tests.contract.isolation_scene import (
    CONTROLLER,
    NUMBERS,
    ROOT,
    VERSIONS,
    Scene,
    make_devices,
    make_node,
    opening,
    scene,
)
from tests.contract.test_hook_process import loaded, slurm_job
from tests.integration.support import require
from tests.sge_files import SgeJob
from tests.simulated_node import until
from tests.support import LaidOutNode, uuid

PROMISED = 2.0
"""Seconds within which a hook ends."""
ALL = (0, 1, 2, 3)

both = pytest.mark.parametrize("method", VERSIONS)


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory that ordinary users can pass through."""
    with open_directory("gna-isolation-") as directory:
        yield directory


@pytest.fixture
def place(room: Path, method: str) -> Iterator[Scene]:
    with scene(room, method) as found:
        yield found


@pytest.fixture
def files(room: Path) -> Iterator[Scene]:
    with scene(room, "device-files") as found:
        yield found


def failed(place: Scene) -> str:
    """Return why isolation failed, as the hook's event says."""
    [why] = [event.fields["why"] for event in events.take(place.node.state) if event.kind == "isolation_failed"]
    return why


def nothing_left(place: Scene) -> None:
    assert (place.records(), place.cell.made(), place.node.held()) == ([], [], {})


# -- who can open what ------------------------------------------------------------------------------------------------


@both
def test_a_job_opens_its_own_device_and_no_other_whoever_it_is(place: Scene) -> None:
    assert place.opened(*ALL) == ["opens"] * 4
    assert place.hook("prolog/sge") == 0
    assert place.node.held() == {0: "603"}
    expected = ["opens", "EPERM", "EPERM", "EPERM"]
    assert place.opened(*ALL) == expected
    assert place.opened(*ALL, user="alice") == expected
    # root in a container: its own user and mount namespaces, all capabilities there
    assert place.opened(*ALL, user="alice", prefix="unshare -Urm") == expected
    assert place.job.exported()["CUDA_VISIBLE_DEVICES"] == uuid(0)
    assert place.hook("epilog/sge") == 0
    assert place.opened(*ALL) == ["opens"] * 4
    nothing_left(place)


@both
def test_late_children_and_new_names_are_no_way_out(place: Scene, room: Path) -> None:
    assert place.hook("prolog/sge") == 0
    late, go, done = room / "late", room / "go", room / "done"
    waits = f"until [ -e {go} ]; do sleep 0.02; done; {opening(place.dev, *ALL)} > {late}; touch {done}"
    place.shepherd.run(f"(setsid sh -c {shlex.quote(waits)} >/dev/null 2>&1 &)")
    go.touch()
    until(done.exists, "the late child's answer")
    assert late.read_text().split() == ["opens", "EPERM", "EPERM", "EPERM"]
    # the number counts, not the name, and making such a node is refused too
    make_node(room / "dev/harmless", *NUMBERS[1])
    assert place.shepherd.run(f"sh -c ': < {room}/dev/harmless' 2>&1")[0] != 0
    assert place.shepherd.run(f"mknod {room}/mine c {NUMBERS[1][0]} {NUMBERS[1][1]} 2>&1")[0] != 0
    assert place.shepherd.run(f"mknod {room}/own c {NUMBERS[0][0]} {NUMBERS[0][1]} 2>&1")[0] == 0


@both
def test_a_job_without_gpus_opens_none(room: Path, method: str) -> None:
    with scene(room, method, gpus=0) as place:
        assert place.hook("prolog/sge") == 0
        assert place.opened(*ALL) == ["EPERM"] * 4
        assert place.job.exported()["CUDA_VISIBLE_DEVICES"] == "NoDevFiles"
        with place.node.store.exclusive():
            assert undo_gone(place.node.state, place.node.store.owners()) == []  # it has no lock, but it runs
        assert place.opened(*ALL) == ["EPERM"] * 4
        assert place.hook("epilog/sge") == 0
        assert place.opened(*ALL) == ["opens"] * 4
        nothing_left(place)


def test_a_job_without_gpus_starts_whoever_has_the_flock(room: Path) -> None:
    """Another one of its kind leaves a record to be looked at; looking needs the flock, the job does not."""
    with scene(room, "cgroup-v1", gpus=0) as place:
        Confinement("aa", "cgroup-v1", "sge", "9", place=f"{place.cell.path}/{PREFIX}aa").write(place.node.state)
        with place.node.store.exclusive():
            assert place.hook("prolog/sge") == 0
        assert place.opened(*ALL) == ["EPERM"] * 4 and len(place.records()) == 2


@both
def test_a_job_with_all_gpus_needs_no_cgroup(room: Path, method: str) -> None:
    with scene(room, method, gpus=4) as place:
        assert place.hook("prolog/sge") == 0
        assert place.opened(*ALL) == ["opens"] * 4 and place.cell.made() == []
        assert place.job.exported()["CUDA_VISIBLE_DEVICES"] == ",".join(uuid(i) for i in ALL)


def test_a_gpu_whose_device_file_nobody_knows_is_the_last_to_be_chosen(room: Path) -> None:
    with scene(room, "cgroup-v1") as place:
        units = place.node.units()
        units[0].minor = -1
        place.node.write_verdict(units=units)
        assert place.hook("prolog/sge") == 0
        assert place.node.held() == {1: "603"}


@both
def test_auto_takes_a_cgroup_where_there_is_one(room: Path, method: str) -> None:
    with scene(room, method, setting="auto") as place:
        assert place.hook("prolog/sge") == 0
        assert place.opened(*ALL) == ["opens", "EPERM", "EPERM", "EPERM"]
        assert place.hook("epilog/sge") == 0  # it may not have been made in this scene's own cell
        nothing_left(place)


def test_device_files_keep_users_apart(files: Scene) -> None:
    assert files.hook("prolog/sge") == 0  # the job is alice's, whose uid the job file says is 1000
    modes = [(os.stat(files.dev / f"nvidia{i}").st_uid, os.stat(files.dev / f"nvidia{i}").st_mode & 0o777) for i in ALL]
    assert modes == [(1000, 0o660), (0, 0o600), (0, 0o600), (0, 0o600)]
    own = "setpriv --reuid 1000 --regid 1000 --clear-groups --"
    assert files.opened(*ALL, prefix=own) == ["opens", "EACCES", "EACCES", "EACCES"]
    assert files.opened(*ALL, user="bob") == ["EACCES"] * 4
    assert files.hook("epilog/sge") == 0
    assert files.opened(*ALL, prefix=own) == ["EACCES"] * 4
    nothing_left(files)


# -- what cannot be had, and what does not bite -----------------------------------------------------------------------


def test_device_files_that_the_driver_opens_again_are_refused(files: Scene) -> None:
    files.params.write_text("ModifyDeviceFiles: 1\n")
    assert files.hook("prolog/sge") == 99
    assert "ModifyDeviceFiles" in failed(files)
    assert [os.stat(files.dev / f"nvidia{i}").st_mode & 0o777 for i in ALL] == [0o666] * 4
    nothing_left(files)


def test_a_whole_major_that_a_parent_allows_is_narrowed(room: Path) -> None:
    with scene(room, "cgroup-v1") as place:
        (place.cell.path / "devices.deny").write_text("a")
        for entry in ("c 1:* rwm", "c 10:229 rw", "c 5:* rwm"):
            (place.cell.path / "devices.allow").write_text(entry)
        assert place.hook("prolog/sge") == 0
        assert place.opened(*ALL) == ["opens", "EPERM", "EPERM", "EPERM"]
        assert place.shepherd.run(f": < {place.dev}/nvidiactl")[0] == 0


def test_a_set_up_that_does_not_bite_is_an_error_and_locks_nothing(room: Path) -> None:
    with scene(room, "cgroup-v1") as place:
        (place.cell.path / "devices.deny").write_text("a")
        (place.cell.path / "devices.allow").write_text("c *:* rwm")  # which no denial of one device narrows
        for setting in ("cgroup-v1", "auto"):
            place.node.compile(isolation=setting)
            assert place.hook("prolog/sge") == 99
            assert failed(place).endswith("instead of EPERM; see `gpu-nodeagent doctor`")
            nothing_left(place)
        assert directory_of("/proc", place.shepherd.pid, "devices") == str(place.cell.path)


def test_a_program_above_stays_in_force_and_one_that_tolerates_no_other_is_an_error(room: Path) -> None:
    with scene(room, "cgroup-v2") as place:
        method = cgroup_v2.CgroupV2()
        method.restrict(str(place.cell.path), [confine.split(str(place.dev), (), ())[1][0]], ())  # GPU 0, from above
        assert place.hook("prolog/sge") == 0
        assert place.opened(*ALL) == ["EPERM"] * 4
    other = room / "other"
    other.mkdir()
    with scene(other, "cgroup-v2") as place:
        loaded = cgroup_v2._load(cgroup_v2.program(()))
        above = os.open(place.cell.path, os.O_RDONLY)
        cgroup_v2._bpf(8, cgroup_v2._words(above, loaded, 6, 0))  # attached without ALLOW_MULTI or ALLOW_OVERRIDE
        os.close(above)
        os.close(loaded)
        assert place.hook("prolog/sge") == 99
        assert "no program can be attached" in failed(place)
        nothing_left(place)


def test_delegation_is_read_from_what_systemd_writes_on_the_cgroup(room: Path) -> None:
    with scene(room, "cgroup-v2") as place:
        method = cgroup_v2.CgroupV2(systemd=str(room))  # a directory: systemd is taken to run
        assert method.why_not(place.shepherd.pid) == f"{place.cell.path} is systemd's: its unit wants Delegate=yes"
        os.setxattr(place.cell.path, "trusted.delegate", b"1")
        assert method.why_not(place.shepherd.pid) == ""
        below = place.cell.path / "below"
        below.mkdir()
        (below / "cgroup.procs").write_text(str(place.shepherd.pid))
        assert method.why_not(place.shepherd.pid) == ""
        os.setxattr(place.cell.path, "trusted.delegate", b"0")
        assert "Delegate=yes" in method.why_not(place.shepherd.pid)


class _Hung(Method):
    """A device that neither opens nor refuses."""

    name = "hung"

    def become(self, grant: Confinement) -> None:
        time.sleep(30)


def test_a_device_that_does_not_answer_is_an_error_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(NotIsolated, match="did not refuse within 1 s"):
        confine._try(_Hung(), Confinement("g", "hung"), ["/dev/null"])
    assert time.monotonic() - began < PROMISED


@both
def test_it_works_where_sigchld_is_ignored(place: Scene) -> None:
    place.shepherd.run("trap '' CHLD")
    assert place.hook("prolog/sge") == 0
    assert place.opened(*ALL) == ["opens", "EPERM", "EPERM", "EPERM"]


@both
def test_a_job_that_is_not_this_hooks_is_not_moved(place: Scene) -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as other:
        for pid in (1, other.pid, 999999999):
            place.shepherds(pid)
            assert place.hook("prolog/sge") == 99
            assert "names no process above this hook" in failed(place)
            nothing_left(place)
        other.kill()


# -- that nothing is left ---------------------------------------------------------------------------------------------


@both
def test_what_a_job_leaves_running_stays_confined_until_it_ends(place: Scene, room: Path) -> None:
    assert place.hook("prolog/sge") == 0
    go, late, done = room / "go", room / "late", room / "done"
    waits = f"until [ -e {go} ]; do sleep 0.02; done; {opening(place.dev, *ALL)} > {late}; touch {done}"
    place.shepherd.run(f"(setsid sh -c {shlex.quote(waits)} >/dev/null 2>&1 &)")
    assert place.hook("epilog/sge") == 0
    assert place.node.held() == {}
    assert len(place.cell.made()) == len(place.records()) == 1
    assert directory_of("/proc", place.shepherd.pid, CONTROLLER[place.method]) == str(place.cell.path)
    go.touch()
    until(done.exists, "the leftover's answer")
    assert late.read_text().split() == ["opens", "EPERM", "EPERM", "EPERM"]
    until(lambda: not (place.cell.path / place.cell.made()[0] / "cgroup.procs").read_text(), "the leftover's end")
    assert place.hook("epilog/sge") == 0
    nothing_left(place)


def test_records_that_cannot_be_trusted_keep_no_lock_from_its_release(room: Path) -> None:
    with scene(room, "cgroup-v1") as place:
        assert place.hook("prolog/sge") == 0
        (place.node.state_dir / "isolation").chmod(0o777)
        assert place.hook("epilog/sge") == 0
        assert place.node.held() == {}
        assert "isolation_left" in [event.kind for event in events.take(place.node.state)]


@both
def test_what_another_hook_is_just_making_is_left_alone_until_that_hook_is_gone(place: Scene) -> None:
    empty = place.cell.path / f"{PREFIX}aa"
    with subprocess.Popen(["/bin/sleep", "60"]) as maker:
        empty.mkdir()
        pid, start = str(maker.pid), start_time(maker.pid)
        others = Confinement("aa", place.method, "sge", "9", pid=pid, pid_start=start, place=str(empty))
        others.write(place.node.state)
        assert place.hook("prolog/sge") == 0
        assert empty.exists() and "aa" in place.records()
        maker.kill()
    assert place.hook("epilog/sge") == 0 and empty.exists()  # an epilog is its own job's
    assert place.hook("prolog/sge") == 0
    assert not empty.exists() and "aa" not in place.records()


@both
def test_the_agent_removes_what_a_killed_shepherd_left(place: Scene) -> None:
    assert place.hook("prolog/sge") == 0
    place.shepherd.process.kill()
    place.restart()
    reconciler = Reconciler(place.node.store, _Gone(), _Quiet())
    for _ in range(2):
        assert len(place.cell.made()) == 1  # its lock is there still
        reconciler.run(_facts(), {})
    with place.node.store.exclusive():
        place.node.store.release(lambda owner: True)
    reconciler.run(_facts(), {})
    nothing_left(place)


class _Gone:
    def ended_here(self, owners: object) -> dict[str, str]:
        return {}

    ended = ended_here


class _Quiet:
    def info(self, *_: object, **__: object) -> None: ...

    def warning(self, *words: object, **fields: object) -> None:
        raise AssertionError((words, fields))


def _facts() -> object:
    from nodeagent.gpu.facts import NodeFacts

    return NodeFacts(boot_id="", monotonic=0.0)


class Traced(Hook):
    """A hook under strace, started by the scene's shepherd."""

    def __init__(self, place: Scene, stub: str, log: Path) -> None:
        super().__init__([str(ROOT / stub), "--config", str(place.node.config)], place.job.environ, log)
        self._place = place

    def _run(self, *options: str) -> Ended:
        argv = [self._strace, "-f", "-qq", "-o", str(self._log), *options, *self._argv]
        return Ended(self._place.shepherd.run(shlex.join(argv), self._environ)[0], "", "", 0.0)

    def calls(self) -> list[Call]:
        """Return the calls of the hook itself: strace counts those of its test child apart."""
        super().calls()
        rows = [line.split(None, 1) for line in self._log.read_text(errors="replace").splitlines()]
        seen: Counter[str] = Counter()
        found = []
        for pid, text in rows:
            name = text.partition("(")[0]
            if pid == rows[0][0] and name.isidentifier():
                seen[name] += 1
                found.append(Call(name, seen[name], text))
        return found


FULL = os.environ.get("GPU_NODEAGENT_CRASH") == "full"
CHANGES = {"mkdir", "mkdirat", "renameat", "rename", "unlinkat", "unlink", "rmdir", "write", "clone", "fork", "vfork"}
CHANGES |= {"clone3", "wait4", "bpf", "chown", "chmod", "fchownat", "fchmodat", "kill", "pipe2", "exit_group"}
"""What is struck by default; with GPU_NODEAGENT_CRASH=full (two minutes) every call is."""
VARYING = {*MEMORY, "wait4", "clock_nanosleep"}
"""How often these occur depends on how long the test child takes."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("stub", ["prolog/sge", "epilog/sge"])
@pytest.mark.parametrize("method", [*VERSIONS, "device-files"])
def test_nothing_is_left_after_a_kill_at_any_call(place: Scene, room: Path, stub: str) -> None:
    require("strace")
    hook = Traced(place, stub, room / "strace.log")
    if stub.startswith("epilog"):
        place.hook("prolog/sge")
    hook.calls()
    tidy(place, with_epilog=True)
    if stub.startswith("epilog"):
        place.hook("prolog/sge")
    calls = from_first_naming(hook.calls(), str(place.node.config.parent))
    calls = [call for call in calls if call.name in CHANGES or (FULL and call.name != "rt_sigreturn")]
    tidy(place, with_epilog=True)
    names = {call.name for call in calls}
    assert names >= ({"bpf"} if place.method == "cgroup-v2" and stub.startswith("prolog") else set())
    assert len(calls) >= 8, calls
    wrong = []
    for number, call in enumerate(calls):
        if stub.startswith("epilog"):
            assert place.hook("prolog/sge") == 0
        ended = hook.killed_before(call)
        try:
            assert ended.killed or call.name in VARYING, ended
            tidy(place, with_epilog=number % 2 == 0)
        except AssertionError as error:
            wrong.append(f"KILL at {call}: {error}")
    print(f"{len(calls)} kills")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(calls)}", *wrong])


def tidy(place: Scene, with_epilog: bool) -> None:
    """Let Grid Engine's epilog follow, or nothing but the shepherd's end and the agent; nothing may be left."""
    if with_epilog:
        assert place.hook("epilog/sge") == 0
    place.restart()
    for name in place.records():
        if name.startswith("."):  # what a killed `replace` left goes when it is a minute old
            os.utime(place.node.state_dir / "isolation" / name, (0, 0))
    with place.node.store.exclusive():
        place.node.store.sweep()
        place.node.store.release(lambda owner: True)
        undo_gone(place.node.state, place.node.store.owners())
    nothing_left(place)
    if place.method == "device-files":
        assert {os.stat(place.dev / f"nvidia{i}").st_uid for i in ALL} == {0}


# -- who does not take part -------------------------------------------------------------------------------------------


def test_without_isolation_and_under_slurm_nothing_of_it_is_even_loaded(room: Path) -> None:
    slurm = room / "slurm"
    slurm.mkdir()
    settings = f"isolation: cgroup-v1\nroots: {{dev: {slurm}/dev}}\n"
    make_devices(slurm / "dev")
    node = LaidOutNode(slurm, "slurm", settings=settings)
    for stub in ("prolog/slurm", "prolog/slurm-task", "epilog/slurm"):
        argv = [str(ROOT / stub), "--config", str(node.config)]
        assert "nodeagent.isolation" not in loaded(*argv, environ=slurm_job(gpus="0"))
    assert not (node.state_dir / "isolation").exists()
    sge = room / "sge"
    sge.mkdir()
    off = LaidOutNode(sge, "sge", settings="isolation: none\n")
    job = SgeJob(sge / "spool", gpus=1)
    for stub in ("prolog/sge", "epilog/sge"):
        argv = [str(ROOT / stub), "--config", str(off.config)]
        assert "nodeagent.isolation" not in loaded(*argv, environ=job.environ)
    assert job.exported()["CUDA_VISIBLE_DEVICES"] == "0"


def test_ctypes_is_loaded_for_cgroup_v2_alone(room: Path) -> None:
    for method in VERSIONS:
        home = room / method
        home.mkdir()
        with scene(home, method) as place:
            log = home / "log"
            argv = ["-X", "importtime", str(ROOT / "prolog/sge"), "--config", str(place.node.config)]
            place.shepherd.run(f"{shlex.join(['/usr/bin/python3', '-IS', *argv])} 2>{log}", place.job.environ)
            names = {line.split("|")[-1].strip() for line in log.read_text().splitlines()}
            assert place.node.held() == {0: "603"}
            assert "nodeagent.isolation.confine" in names
            assert ("ctypes" in names) == (method == "cgroup-v2")
