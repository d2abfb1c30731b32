"""Isolation's pure parts: which devices, which method, which cgroup, and what the BPF program answers."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from nodeagent.config.load import load
from nodeagent.errors import NotIsolated
from nodeagent.hook import emit
from nodeagent.isolation import cgroup, cgroup_v2, device_files
from nodeagent.isolation.confine import methods, pick
from nodeagent.isolation.devices import Device, files_of, split
from nodeagent.isolation.method import Method
from nodeagent.isolation.record import Confinement, read_all
from nodeagent.state.files import Directory
from nodeagent.state.hook_conf import HookConf
from nodeagent.state.verdict_file import OK, UnitLine
from tests.support import uuid

CHAR, BLOCK = 2, 1


def unit(index: int, name: str = "", minor: int | None = None) -> UnitLine:
    number = index if minor is None else minor
    return UnitLine(name or uuid(index), index, number, "", "H100", 0, (), OK, gpu=uuid(index))


def instance(gpu: int, name: str, caps: tuple[int, ...]) -> UnitLine:
    line = unit(gpu, name)
    line.caps = caps
    return line


# -- the program ------------------------------------------------------------------------------------------------------


def answer(code: bytes, kind: int, major: int, minor: int, access: int = 3) -> int:
    """Carry a program out, as the kernel would for an access to a device."""
    order = "<" if sys.byteorder == "little" else ">"
    context = {0: access << 16 | kind, 4: major, 8: minor}
    registers = dict.fromkeys(range(11), 0)
    at = 0
    while True:
        op, pair, offset, value = struct.unpack_from(f"{order}BBhi", code, 8 * at)
        target, source = (pair & 15, pair >> 4) if sys.byteorder == "little" else (pair >> 4, pair & 15)
        at += 1
        if op == 0x61:
            assert source == 1
            registers[target] = context[offset]
        elif op == 0x57:
            registers[target] &= value
        elif op == 0xB7:
            registers[target] = value
        elif op == 0x55:
            at += offset if registers[target] != value else 0
        else:
            assert op == 0x95
            return registers[0]


def test_the_program_refuses_the_denied_character_devices_and_nothing_else() -> None:
    denied = {(195, 0), (195, 3), (237, 30), (511, 195)}
    code = cgroup_v2.program(denied)
    for major in (0, 1, 195, 237, 511):
        for minor in (0, 1, 3, 30, 195, 255, 70000):
            assert answer(code, CHAR, major, minor) == ((major, minor) not in denied)
            assert answer(code, BLOCK, major, minor) == 1
    for access in range(8):  # mknod, read, write and all of them
        assert answer(code, CHAR, 195, 3, access) == 0


def test_a_program_that_denies_nothing_allows_all_and_a_large_one_reaches_its_end() -> None:
    assert answer(cgroup_v2.program(()), CHAR, 195, 0) == 1
    many = [(237, minor) for minor in range(3, 2000)]
    code = cgroup_v2.program(many)
    assert [answer(code, CHAR, 237, minor) for minor in (2, 3, 1999, 2000)] == [1, 0, 0, 1]
    assert answer(code, BLOCK, 237, 3) == 1


# -- devices ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain files stand for devices: nvidiaN is 195:N, a capability 237:N, all else of NVIDIA's 511:0."""

    def device(path: str) -> Device:
        name = path.rpartition("/")[2]
        digits = "".join(c for c in name if c.isdigit())
        return Device(237 if "cap" in name else 195 if digits else 511, int(digits or 0), path)

    monkeypatch.setattr("nodeagent.isolation.devices._device", device)


def lay_out(dev: Path, *names: str) -> str:
    (dev / "nvidia-caps").mkdir()
    for name in names:
        (dev / name).touch()
    return str(dev)


def test_own_others_and_everybodys(tmp_path: Path, numbers: None) -> None:
    names = ("nvidia0", "nvidia1", "nvidia9", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "null", "nvidia-caps/x")
    dev = lay_out(tmp_path, *names, "nvidia-caps/nvidia-cap1", "nvidia-caps/nvidia-cap2", "nvidia-caps/nvidia-cap12")
    known = [unit(0), unit(1), unit(2)]
    own, others, common = split(dev, known, [known[1]])
    assert [device.number for device in own] == [(195, 1)]
    # nvidia9 is no unit's, nvidia2 has no file: both are closed; a test opens what has a file
    assert {device.number: bool(device.path) for device in others} == {
        (195, 0): True,
        (195, 9): True,
        (195, 2): False,
        (237, 12): True,
    }
    assert {device.path.rpartition("/")[2] for device in common} == {
        *("nvidiactl", "nvidia-uvm", "nvidia-modeset", "nvidia-cap1", "nvidia-cap2"),
    }


def test_shares_of_a_gpu_have_its_device(tmp_path: Path, numbers: None) -> None:
    dev = lay_out(tmp_path, "nvidia0", "nvidia1")
    known = [unit(0, f"{uuid(0)}@0"), unit(0, f"{uuid(0)}@1"), unit(1)]
    own, others, _ = split(dev, known, [known[1]])
    assert ([d.number for d in own], [d.number for d in others]) == ([(195, 0)], [(195, 1)])


def test_an_instance_has_its_gpu_and_its_capabilities_and_no_others(tmp_path: Path, numbers: None) -> None:
    caps = [f"nvidia-caps/nvidia-cap{minor}" for minor in (1, 2, 30, 31, 39, 40)]
    dev = lay_out(tmp_path, "nvidia0", "nvidia1", *caps)
    own, others, common = split(dev, [unit(1)], [instance(0, "MIG-1", (30, 31))])
    assert [device.number for device in own] == [(195, 0), (237, 30), (237, 31)]
    assert [device.number for device in others] == [(195, 1), (237, 39), (237, 40)]
    assert [device.number for device in common] == [(237, 1), (237, 2)]


def test_an_instance_whose_file_somebody_could_yet_make_is_closed_too(tmp_path: Path, numbers: None) -> None:
    """nvidia-modprobe is setuid root and makes a capability's file for any user who asks."""
    dev = lay_out(tmp_path, "nvidia0", "nvidia-caps/nvidia-cap30", "nvidia-caps/nvidia-cap31")
    known = [instance(0, "MIG-1", (30, 31)), instance(0, "MIG-2", (39, 40))]
    own, others, _ = split(dev, known, [known[0]])
    assert [device.number for device in own] == [(195, 0), (237, 30), (237, 31)]
    assert [(device.number, device.path) for device in others] == [((237, 39), ""), ((237, 40), "")]


def test_capabilities_without_any_file_count_by_what_the_kernel_calls_their_major(
    tmp_path: Path, numbers: None
) -> None:
    dev = lay_out(tmp_path, "nvidia0")
    known = [instance(0, "MIG-1", (30, 31)), instance(0, "MIG-2", (39, 40))]
    (tmp_path / "devices").write_text("Character devices:\n  1 mem\n237 nvidia-caps\n238 nvidia-caps-imex-channels\n")
    own, others, _ = split(dev, known, [known[0]], str(tmp_path))
    assert [device.number for device in own] == [(195, 0), (237, 30), (237, 31)]
    assert [device.number for device in others] == [(237, 39), (237, 40)]


def test_own_devices_stand_in_the_order_of_the_grant(tmp_path: Path, numbers: None) -> None:
    dev = lay_out(tmp_path, *(f"nvidia{minor}" for minor in (0, 1, 2, 10)))
    known = [unit(0, minor=0), unit(1, minor=2), unit(2, minor=10), unit(3, minor=1)]
    own, _, _ = split(dev, known, known[1:])
    assert [device.minor for device in own] == [2, 10, 1]


def test_what_is_own_must_be_known(tmp_path: Path, numbers: None) -> None:
    with pytest.raises(NotIsolated, match="the device file of"):
        files_of("/dev", unit(0, minor=-1))
    with pytest.raises(NotIsolated, match="capability devices"):
        files_of("/dev", unit(0, "MIG-1"))


def test_without_a_driver_there_is_nothing_to_close(tmp_path: Path) -> None:
    assert split(str(tmp_path / "none"), (), ()) == ([], [], [])


# -- the cgroup that a process is in ----------------------------------------------------------------------------------


def fake_proc(directory: Path, cgroups: str, mounts: str) -> str:
    (directory / "self").mkdir(parents=True)
    (directory / "7").mkdir()
    (directory / "7/cgroup").write_text(cgroups)
    (directory / "self/mountinfo").write_text(mounts)
    return str(directory)


@pytest.mark.parametrize(
    ("cgroups", "mounts", "controller", "expected"),
    [
        ("4:devices:/a/b\n0::/u\n", "30 1 0:1 / /cg rw - cgroup cgroup rw,devices\n", "devices", "/cg/a/b"),
        ("4:cpu,devices:/\n", "30 1 0:1 / /cg rw shared:1 - cgroup none rw,devices,cpu\n", "devices", "/cg"),
        ("0::/u/v\n", "30 1 0:1 / /cg rw - cgroup2 cgroup2 rw,nsdelegate\n", "", "/cg/u/v"),
        ("4:devices:/a\n0::/u\n", "30 1 0:1 / /cg rw - cgroup2 cgroup2 rw\n", "devices", ""),
        ("4:devices:/a\n", "30 1 0:1 / /cg rw - cgroup cgroup rw,freezer\n", "devices", ""),
        ("0::/pod/x/y\n", "30 1 0:1 /pod/x /cg rw - cgroup2 c rw\n", "", "/cg/y"),
        ("0::/pod/xy\n", "30 1 0:1 /pod/x /cg rw - cgroup2 c rw\n", "", ""),
        ("", "30 1 0:1 / /cg rw - cgroup2 c rw\n", "", ""),
    ],
)
def test_where_a_process_is(tmp_path: Path, cgroups: str, mounts: str, controller: str, expected: str) -> None:
    assert cgroup.directory_of(fake_proc(tmp_path / "p", cgroups, mounts), 7, controller) == expected


def test_version_2_below_systemd_wants_a_unit_that_delegates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "system.slice"
    where.mkdir()
    mounts = f"30 1 0:1 / {tmp_path} rw - cgroup2 c rw\n"
    proc = fake_proc(tmp_path / "p", "0::/system.slice\n", mounts)
    monkeypatch.setattr(cgroup_v2, "_load", lambda code: __import__("os").open("/dev/null", 0))
    assert cgroup_v2.CgroupV2(proc, systemd=str(tmp_path / "no")).why_not(7) == ""
    assert "Delegate=yes" in cgroup_v2.CgroupV2(proc, systemd=str(tmp_path)).why_not(7)
    monkeypatch.setattr(cgroup_v2, "delegated", lambda path: path == str(where))
    assert cgroup_v2.CgroupV2(proc, systemd=str(tmp_path)).why_not(7) == ""


def test_a_kernel_that_takes_no_program_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = fake_proc(tmp_path / "p", "0::/\n", f"30 1 0:1 / {tmp_path} rw - cgroup2 c rw\n")

    def refuse(code: bytes) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(cgroup_v2, "_load", refuse)
    assert cgroup_v2.CgroupV2(proc, "/nowhere").why_not(7) == "bpf(2) is refused: Operation not permitted"


@pytest.mark.parametrize(
    ("line", "can"), [("ModifyDeviceFiles: 0", True), ("ModifyDeviceFiles: 1", False), ("", False)]
)
def test_device_files_only_where_the_driver_leaves_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, can: bool
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (tmp_path / "driver/nvidia").mkdir(parents=True)
    assert "not known" in device_files.DeviceFiles(str(tmp_path)).why_not(7)
    (tmp_path / "driver/nvidia/params").write_text(f"DeviceFileUID: 0\n{line}\n")
    assert (device_files.DeviceFiles(str(tmp_path)).why_not(7) == "") == can


def test_device_files_refuse_what_they_cannot_keep() -> None:
    method = device_files.DeviceFiles()
    for uid, units, words in (("0", (uuid(0),), "root"), ("1000", ("MIG-1",), "part"), ("1000", ("GPU-1@0",), "part")):
        with pytest.raises(NotIsolated, match=words):
            method.plan(Confinement("g", "device-files", uid=uid, units=units), 7, [])


# -- which method -----------------------------------------------------------------------------------------------------


class Can(Method):
    """A method that can be had, or not, as it was told."""

    def __init__(self, why: str = "") -> None:
        self.why = why

    def why_not(self, pid: int) -> str:
        return self.why


def test_auto_takes_the_first_cgroup_that_can_be_had() -> None:
    for first, second, expected in (("", "", "cgroup-v1"), ("no", "", "cgroup-v2"), ("no", "no", None)):
        known = {"cgroup-v1": Can(first), "cgroup-v2": Can(second), "device-files": Can("")}
        assert pick("auto", known, 7) is (known[expected] if expected else None)


def test_none_is_none_and_what_is_named_must_be_had() -> None:
    known: dict[str, Method] = {"cgroup-v1": Can(""), "cgroup-v2": Can("it is not mounted"), "device-files": Can("")}
    assert pick("none", known, 7) is None
    assert pick("device-files", known, 7) is known["device-files"]
    with pytest.raises(NotIsolated, match="isolation by cgroup-v2: it is not mounted; see `gpu-nodeagent doctor`"):
        pick("cgroup-v2", known, 7)


def test_every_method_of_the_setting_is_in_the_registry(tmp_path: Path) -> None:
    for name, method in methods().items():
        tmp_path.chmod(0o755)
        (tmp_path / "config.yaml").write_text(f"isolation: {name}\n")
        assert load(tmp_path / "config.yaml").config.isolation == name == method.name


# -- what is recorded, and what the job sees --------------------------------------------------------------------------


def test_a_record_survives_its_file_and_a_damaged_one_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    state = Directory(str(tmp_path))
    made = Confinement(
        "0a", "cgroup-v1", "sge", "7", "3", "1000", "12", "99", "/cg/x y", "/cg", ("GPU-1",), ("/dev/n",)
    )
    assert read_all(state) == []
    made.write(state)
    (tmp_path / "isolation/0b").write_text("format=9\n")
    [found] = read_all(state)
    assert all(getattr(found, name) == getattr(made, name) for name in Confinement.__slots__)
    made.forget(state)
    assert read_all(state) == [] and (tmp_path / "isolation/0b").exists()


@pytest.mark.parametrize(
    ("setting", "constrained", "expected"),
    [("auto", True, uuid(2)), ("auto", False, "2"), ("index", True, "2"), ("uuid", False, uuid(2))],
)
def test_what_cuda_visible_devices_holds(setting: str, constrained: bool, expected: str) -> None:
    conf = HookConf({"hooks.cuda_visible_devices": setting})
    assert emit.visible_devices(conf, [unit(2)], constrained) == expected
