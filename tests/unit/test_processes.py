"""Processes below a /proc of the test's: open devices, groups, cgroups, variables, and processes that are gone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nodeagent.state import processes

NULL, ZERO = os.stat("/dev/null").st_rdev, os.stat("/dev/zero").st_rdev


class Proc:
    """A tree such as /proc; a descriptor's link leads to a file named like a GPU's, which leads to a real device."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = str(directory / "proc")
        for name, real in (("nvidia0", "/dev/null"), ("nvidia1", "/dev/zero"), ("other", "/dev/null")):
            (directory / name).symlink_to(real)

    def add(self, pid: int, *opens: str, state: str = "S", start: int = 7, **files: str) -> None:
        home = Path(self.root, str(pid))
        (home / "fd").mkdir(parents=True)
        (home / "stat").write_text(f"{pid} (a) b) {state} " + "0 " * 18 + f"{start} 0 0\n")
        for number, name in enumerate(opens):
            (home / "fd" / str(number)).symlink_to(self.directory / name)
        for name, text in files.items():
            (home / name).write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_who_has_a_device_open_is_found_by_its_number_and_a_zombie_is_not(proc: Proc) -> None:
    proc.add(10, "nvidia0", start=70)
    proc.add(11, "nvidia1", "other")
    proc.add(12, "nvidia0", state="Z")
    proc.add(13, "other")
    Path(proc.root, "self").symlink_to("10")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and processes.device_number("/dev/null") == NULL
    assert [(p.pid, p.start) for p in processes.holding(proc.root, {NULL})] == [(10, "70")]
    assert {p.pid for p in processes.holding(proc.root, {NULL, ZERO})} == {10, 11}
    assert processes.holding(proc.root, {NULL}, pids=[11, 13]) == []
    assert processes.open_devices(proc.root, 11) == {ZERO}


def test_a_process_that_is_gone_has_nothing(proc: Proc) -> None:
    Path(proc.root).mkdir()
    assert processes.find(proc.root, 5) is None
    assert processes.open_devices(proc.root, 5) == set() and processes.holding(proc.root, {NULL}, [5]) == []
    assert processes.owner_uid(proc.root, 5) == -1 and processes.group_ids(proc.root, 5) == set()
    assert processes.cgroups(proc.root, 5) == [] and processes.variable(proc.root, 5, "X") == ""
    assert processes.device_number(f"{proc.root}/none") == processes.device_number(proc.root) == -1


def test_groups_cgroups_and_variables(proc: Proc) -> None:
    proc.add(
        10,
        status="Name:\tx\nGid:\t9 9\nGroups:\t100 20001 \n",
        cgroup="5:devices,pids:/slurm/job_7:0/x\n0::/system.slice/a\n",
        environ="A=1\0SLURM_JOB_ID=77\0SLURM_JOB_IDX=8\0",
    )
    assert processes.group_ids(proc.root, 10) == {100, 20001}
    assert processes.cgroups(proc.root, 10) == [("devices,pids", "/slurm/job_7:0/x"), ("", "/system.slice/a")]
    assert processes.variable(proc.root, 10, "SLURM_JOB_ID") == "77"
    assert processes.variable(proc.root, 10, "SLURM_JOB") == ""
    assert processes.owner_uid(proc.root, 10) == os.getuid()


def test_ancestors_are_named_whatever_stands_in_their_names(tmp_path: Path) -> None:
    for pid, name, above in ((30, "python3", 20), (20, "sge_shepherd", 10), (10, "1 (x) S 9) 1", 1), (1, "init", 0)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) S {above} 0 0\n")
    assert list(processes.ancestors(str(tmp_path), 30)) == [(20, "sge_shepherd"), (10, "1 (x) S 9) 1"), (1, "init")]
    assert list(processes.ancestors(str(tmp_path), 99)) == []
