"""Each line of the doctor: where all is well, and where it fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.config.model import Config, Roots, Scheduler, Slurm
from nodeagent.doctor import holder, isolation
from nodeagent.doctor.line import FAIL, OK, WARN, Line, Look
from nodeagent.doctor.registry import CHECKS, examine
from nodeagent.errors import CommandFailed
from nodeagent.isolation import cgroup_v2, device_files
from nodeagent.isolation.confine import methods
from nodeagent.isolation.devices import Device
from nodeagent.isolation.method import Method


class Can(Method):
    """A method that can be had, or not, as it was told."""

    def __init__(self, why: str = "") -> None:
        self.why = why

    def why_not(self, pid: int) -> str:
        return self.why


def look(
    kind: str = "sge",
    setting: str = "auto",
    v1: Method | None = None,
    v2: Method | None = None,
    files: Method | None = None,
    constrains: Callable[[], bool] = lambda: True,
    ask: Callable[[Sequence[str]], str] | None = None,
    user: str = "root",
) -> Look:
    config = replace(Config(), isolation=setting, scheduler=Scheduler(kind=kind))
    known = {"cgroup-v1": v1 or Can(), "cgroup-v2": v2 or Can(), "device-files": files or Can()}
    return Look(config, 7, "sge_execd", constrains, known, True, "n1", user, ask or silence)


def silence(argv: Sequence[str]) -> str:
    raise CommandFailed(argv, 1, "")


def one(lines: object) -> Line:
    [line] = lines  # type: ignore[misc]
    assert bool(line.remedy) == (line.state != OK), line
    return line  # type: ignore[no-any-return]


def unanswered() -> bool:
    raise CommandFailed(["scontrol"], None, "")


def test_slurm_that_constrains_devices_is_well_and_one_that_does_not_is_told_how() -> None:
    assert one(isolation.slurm_constrains(look("slurm"))).state == OK
    bad = one(isolation.slurm_constrains(look("slurm", constrains=lambda: False)))
    assert bad.state == WARN and "ConstrainDevices=yes" in bad.remedy
    silent = one(isolation.slurm_constrains(look("slurm", constrains=unanswered)))
    assert silent.state == WARN and "not known" in silent.evidence
    assert list(isolation.slurm_constrains(look("sge", constrains=unanswered))) == []


def test_what_the_administrator_says_of_slurm_is_not_asked_again() -> None:
    for word, state in (("yes", OK), ("no", WARN)):
        told = look("slurm", constrains=unanswered)
        scheduler = Scheduler(kind="slurm", slurm=Slurm(constrains_devices=word))
        told = replace(told, config=replace(told.config, scheduler=scheduler))
        assert one(isolation.slurm_constrains(told)).state == state


def test_nothing_of_ours_is_said_under_slurm() -> None:
    lines = examine(look("slurm", "device-files"))
    assert lines[0].name == "slurm-constrains-devices" and all(line.name.startswith("slurm-") for line in lines)


def test_whether_a_retired_gpu_can_be_held() -> None:
    def asked(answer: Callable[[], tuple[str, str]], retire: str = "holder") -> Line:
        scheduler = Scheduler(kind="slurm", slurm=Slurm(retire=retire))
        told = look("slurm")
        return one(holder.holder(replace(told, config=replace(told.config, scheduler=scheduler), no_holder=answer)))

    def unanswered_too() -> tuple[str, str]:
        raise CommandFailed(["scontrol"], None, "")

    there = asked(lambda: ("", ""))
    assert there.state == OK and "held by a suspended job in gpuhold" in there.evidence
    missing = asked(lambda: ("there is no partition gpuhold", "put it there"))
    assert (missing.state, missing.remedy) == (WARN, "put it there")
    assert missing.evidence == "a retired GPU drains the node: there is no partition gpuhold"
    assert asked(unanswered_too).state == WARN
    assert "not wanted" in asked(unanswered_too, "drain").evidence, "nobody is asked"
    assert list(holder.holder(look("sge"))) == []


def test_the_method_that_auto_takes_and_why_not_the_first() -> None:
    assert one(isolation.method(look())).evidence.endswith("confined by cgroup-v1")
    second = one(isolation.method(look(v1=Can("it is not mounted"))))
    assert second.state == OK and "by cgroup-v2 (cgroup-v1: it is not mounted)" in second.evidence


def test_no_method_is_a_warning_and_one_that_was_named_a_failure() -> None:
    nothing = one(isolation.method(look(v1=Can("no v1"), v2=Can("no v2"))))
    assert nothing.state == WARN and "cgroup-v1: no v1; cgroup-v2: no v2" in nothing.evidence
    assert one(isolation.method(look(setting="none"))).state == WARN
    assert one(isolation.method(replace(look(), root=False))).remedy == "run this as root"
    named = one(isolation.method(look(setting="cgroup-v2", v2=Can("no v2"))))
    assert named.state == FAIL and "cgroup-v2: no v2" in named.evidence
    assert one(isolation.method(look(setting="cgroup-v2"))).state == OK


def test_device_files_want_a_driver_that_leaves_them_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (tmp_path / "driver/nvidia").mkdir(parents=True)
    params = tmp_path / "driver/nvidia/params"
    real = device_files.DeviceFiles(str(tmp_path))
    params.write_text("ModifyDeviceFiles: 1\n")
    bad = one(isolation.driver_leaves_files(look(setting="device-files", files=real)))
    assert bad.state == FAIL and "NVreg_ModifyDeviceFiles=0" in bad.remedy
    params.write_text("ModifyDeviceFiles: 0\n")
    assert one(isolation.driver_leaves_files(look(setting="device-files", files=real))).state == OK
    assert list(isolation.driver_leaves_files(look(setting="auto", files=Can("no")))) == []


def test_files_that_device_files_closed_are_told_once_another_method_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodeagent.isolation.devices._device", lambda path: Device(195, 0, path))
    for name, mode in (("nvidia0", 0o666), ("nvidia1", 0o600), ("nvidiactl", 0o600)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)

    def on(setting: str) -> Look:
        seen = look(setting=setting)
        return replace(seen, config=replace(seen.config, roots=Roots(dev=str(tmp_path))))

    left = one(isolation.files_left_closed(on("auto")))
    assert left.state == WARN and left.remedy.endswith(f"chmod 0666 {tmp_path}/nvidia1")
    assert list(isolation.files_left_closed(on("device-files"))) == []
    (tmp_path / "nvidia1").chmod(0o666)
    assert list(isolation.files_left_closed(on("auto"))) == []


def test_version_2_below_systemd_wants_delegation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = tmp_path / "cg/system.slice/sge_execd.service"
    unit.mkdir(parents=True)
    proc = tmp_path / "proc"
    for directory in (proc / "self", proc / "7"):
        directory.mkdir(parents=True)
    (proc / "7/cgroup").write_text("0::/system.slice/sge_execd.service\n")
    (proc / "self/mountinfo").write_text(f"30 1 0:1 / {tmp_path}/cg rw - cgroup2 c rw\n")
    v2 = cgroup_v2.CgroupV2(str(proc), systemd=str(tmp_path))
    for setting, state in (("cgroup-v2", FAIL), ("auto", WARN)):
        bad = one(isolation.delegation(look(setting=setting, v1=Can("not mounted"), v2=v2)))
        assert bad.state == state
        assert bad.remedy == "systemctl edit sge_execd.service: [Service] Delegate=yes; then restart it"
    alone = one(isolation.delegation(look("local", "cgroup-v2", v2=v2)))
    assert alone.remedy.startswith("systemd-run --scope -p Delegate=yes")
    monkeypatch.setattr(isolation, "delegated", lambda path: path == str(unit))
    assert one(isolation.delegation(look(setting="cgroup-v2", v2=v2))).state == OK
    assert list(isolation.delegation(look(setting="auto", v2=v2))) == []  # version 1 is taken
    without = cgroup_v2.CgroupV2(str(proc), systemd=str(tmp_path / "none"))
    assert list(isolation.delegation(look(setting="cgroup-v2", v2=without))) == []


def test_the_registry_is_complete_and_says_at_least_one_line_for_each_scheduler() -> None:
    assert len(CHECKS) == len(set(CHECKS))
    for kind in ("slurm", "sge", "local"):
        assert examine(replace(look(kind), methods=methods("/nowhere")))
