"""/proc/driver/nvidia and sysfs, in all the spellings that drivers have used."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.gpu import procfs


@pytest.mark.parametrize(
    "text, version",
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue Apr  8 12:41:17 UTC 2025\n", "550.163.01"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  367.56  Wed Nov  2 22:33:10 PDT 2016\n", "367.56"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build  (dvs-builder@U16-A24)"
            "  Thu Jan 23 20:00:00 UTC 2025\nGCC version:  gcc version 12.2.0\n",
            "570.86.10",
        ),
        ("NVRM version: NVIDIA UNIX aarch64 Kernel Module  535.54.03  Tue Jun  6 22:31:14 UTC 2023\n", "535.54.03"),
        ("GCC version:  gcc version 4.8.5 (Red Hat 4.8.5-4)\n", ""),
        ("", ""),
    ],
)
def test_version_in_all_wordings(text: str, version: str) -> None:
    assert procfs.parse_version(text) == version


def test_version_falls_back_to_the_module(tmp_path: Path) -> None:
    assert procfs.driver_version(str(tmp_path), str(tmp_path)) == ""
    (tmp_path / "module/nvidia").mkdir(parents=True)
    (tmp_path / "module/nvidia/version").write_text("535.54.03\n")
    assert procfs.driver_version(str(tmp_path), str(tmp_path)) == "535.54.03"
    (tmp_path / "driver/nvidia").mkdir(parents=True)
    (tmp_path / "driver/nvidia/version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  x\n")
    assert procfs.driver_version(str(tmp_path), str(tmp_path)) == "550.54.15"


@pytest.mark.parametrize(
    "text, normal",
    [
        ("00000000:1B:00.0", "0000:1b:00.0"),
        ("0000:1b:00.0", "0000:1b:00.0"),
        ("0000:3B:00", "0000:3b:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("000A:01:1F.1", "000a:01:1f.1"),
        ("", ""),
        ("3b:00.0", ""),
        ("nonsense", ""),
    ],
)
def test_bus_ids_have_one_form(text: str, normal: str) -> None:
    assert procfs.normal_bus_id(text) == normal


INFORMATION = (
    "Model: \t\t Tesla V100-SXM2-32GB\n"
    "IRQ:   \t\t 173\n"
    "GPU UUID: \t GPU-1b2c3d4e-0000-4000-8000-000000000000\n"
    "Video BIOS: \t 88.00.48.00.02\n"
    "Bus Type: \t PCIe\n"
    "DMA Mask: \t 0x7fffffffffff\n"
    "Bus Location: \t 0000:1a:00.0\n"
    "Device Minor: \t 4\n"
)


def test_information_with_tabs() -> None:
    gpu = procfs.parse_information(INFORMATION, "0000:1a:00.0")
    assert (gpu.uuid, gpu.bus_id) == ("GPU-1b2c3d4e-0000-4000-8000-000000000000", "0000:1a:00.0")
    assert (gpu.model, gpu.minor, gpu.vbios) == ("Tesla V100-SXM2-32GB", 4, "88.00.48.00.02")
    assert not gpu.excluded


def test_information_of_a_gpu_that_was_never_initialised() -> None:
    text = INFORMATION.replace("GPU-1b2c3d4e-0000-4000-8000-000000000000", "GPU-????????-????-????-????-????????????")
    gpu = procfs.parse_information(text.replace("88.00.48.00.02", "??.??.??.??.??"), "0000:1a:00.0")
    assert (gpu.uuid, gpu.vbios, gpu.minor) == ("", "", 4)


def test_information_without_the_optional_lines() -> None:
    gpu = procfs.parse_information("Model: \t\t Tesla K80\nGPU Excluded:\t Yes\n", "0000:05:00.0")
    assert (gpu.uuid, gpu.bus_id, gpu.minor, gpu.excluded) == ("", "0000:05:00.0", None, True)


def test_identity_of_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    assert procfs.gpu_identity(str(tmp_path), "0000:05:00.0") is None
    assert procfs.gpu_bus_ids(str(tmp_path)) == []


def test_bus_ids_come_in_order(tmp_path: Path) -> None:
    for name in ("0000:89:00.0", "0000:1a:00.0", "0001:01:00.0", "not-a-gpu"):
        (tmp_path / "driver/nvidia/gpus" / name).mkdir(parents=True)
    assert procfs.gpu_bus_ids(str(tmp_path)) == ["0000:1a:00.0", "0000:89:00.0", "0001:01:00.0"]


def pci_device(sys: Path, address: str, vendor: str, kind: str, numa: str = "0") -> Path:
    home = sys / "bus/pci/devices" / address
    home.mkdir(parents=True)
    for name, value in (("vendor", vendor), ("class", kind), ("numa_node", numa)):
        (home / name).write_text(f"{value}\n")
    return home


def test_pci_gpus_are_named_with_their_driver_and_nothing_else(tmp_path: Path) -> None:
    pci_device(tmp_path, "0000:1a:00.0", "0x10de", "0x030200")
    pci_device(tmp_path, "0000:1b:00.0", "0x10de", "0x030000")
    pci_device(tmp_path, "0000:1b:00.1", "0x10de", "0x040300")  # its sound
    pci_device(tmp_path, "0000:c1:00.0", "0x10de", "0x068000")  # an NVSwitch
    pci_device(tmp_path, "0000:03:00.0", "0x1a03", "0x030000")  # the service processor's display
    virtual = pci_device(tmp_path, "0000:1a:00.4", "0x10de", "0x030200")
    (virtual / "physfn").symlink_to("../0000:1a:00.0")
    passed = pci_device(tmp_path, "0000:3d:00.0", "0x10de", "0x030200")
    (passed / "driver").symlink_to("../../../bus/pci/drivers/vfio-pci")
    bound = pci_device(tmp_path, "0000:3e:00.0", "0x10de", "0x030200")
    (bound / "driver").symlink_to("../../../bus/pci/drivers/nvidia")
    assert procfs.PciBus(str(tmp_path)).gpus() == {"0000:1a:00.0": "", "0000:1b:00.0": "", "0000:3e:00.0": "nvidia"}


def test_no_pci_bus_is_no_value_and_an_empty_one_is_none_of_them(tmp_path: Path) -> None:
    assert procfs.PciBus(str(tmp_path)).gpus() is None
    (tmp_path / "bus/pci/devices").mkdir(parents=True)
    assert procfs.PciBus(str(tmp_path)).gpus() == {}


def test_slots_of_the_chassis_are_known_by_the_place_of_their_card(tmp_path: Path) -> None:
    assert procfs.pci_slots(str(tmp_path)) == {}
    for name, address in (("4", "0000:3b:00"), ("7-1", "0000:5e:00")):
        home = tmp_path / "bus/pci/slots" / name
        home.mkdir(parents=True)
        (home / "address").write_text(f"{address}\n")
    (tmp_path / "bus/pci/slots/9").mkdir()
    slots = procfs.pci_slots(str(tmp_path))
    assert (slots["0000:3b:00"], slots["0000:5e:00"]) == ("4", "7-1")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (
            "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\n"
            "DeviceFileUID: 0\nDeviceFileGID: 44\nDeviceFileMode: 432\n",
            {"modify": 1, "mode": 0o660, "uid": 0, "gid": 44},
        ),
        ("ModifyDeviceFiles: 1\nDeviceFileUID: 0\n", None),
        ("ModifyDeviceFiles: yes\nDeviceFileUID: 0\nDeviceFileGID: 0\nDeviceFileMode: 438\n", None),
        ("", None),
    ],
)
def test_how_the_driver_keeps_its_device_files(text: str, rule: dict[str, int] | None, tmp_path: Path) -> None:
    (tmp_path / "driver/nvidia").mkdir(parents=True)
    (tmp_path / "driver/nvidia/params").write_text(text)
    assert procfs.device_rule(str(tmp_path)) == rule


def test_what_changes_on_the_bus_is_seen(tmp_path: Path) -> None:
    bus = procfs.PciBus(str(tmp_path))
    first = pci_device(tmp_path, "0000:1a:00.0", "0x10de", "0x030200")
    silent = pci_device(tmp_path, "0000:1b:00.0", "", "")
    assert len(bus.gpus() or {}) == 1
    (silent / "vendor").write_text("0x10de\n")
    (silent / "class").write_text("0x030200\n")
    assert len(bus.gpus() or {}) == 2  # what does not say what it is, is asked again
    (silent / "driver").symlink_to("../../../bus/pci/drivers/vfio-pci")
    assert len(bus.gpus() or {}) == 1  # handed to a virtual machine
    first.rename(tmp_path / "gone")
    assert bus.gpus() == {}
    pci_device(tmp_path, "0000:1a:00.0", "0x8086", "0x010601")  # another device in its place
    assert bus.gpus() == {}
    pci_device(tmp_path, "0000:1c:00.0", "0x10de", "0x030200")
    assert len(bus.gpus() or {}) == 1


def test_a_device_is_asked_once_what_it_is(tmp_path: Path) -> None:
    gpu = pci_device(tmp_path, "0000:1a:00.0", "0x10de", "0x030200")
    bus = procfs.PciBus(str(tmp_path))
    assert len(bus.gpus() or {}) == 1
    (gpu / "vendor").unlink()
    assert len(bus.gpus() or {}) == 1


def test_numa_node(tmp_path: Path) -> None:
    pci_device(tmp_path, "0000:1a:00.0", "0x10de", "0x030200", numa="1")
    pci_device(tmp_path, "0000:1b:00.0", "0x10de", "0x030200", numa="-1")
    assert procfs.numa_node(str(tmp_path), "0000:1a:00.0") == 1
    assert procfs.numa_node(str(tmp_path), "0000:1b:00.0") is None
    assert procfs.numa_node(str(tmp_path), "0000:1c:00.0") is None


def test_the_capability_files_of_an_instance(tmp_path: Path) -> None:
    home = tmp_path / "driver/nvidia/capabilities/gpu3/mig/gi1"
    (home / "ci0").mkdir(parents=True)
    (home / "access").write_text("DeviceFileMinor: 30\nDeviceFileMode: 292\nDeviceFileModify: 1\n")
    (home / "ci0" / "access").write_text("DeviceFileMinor: 31\nDeviceFileMode: 292\nDeviceFileModify: 1\n")
    (home / "ci1").mkdir()
    (home / "ci1" / "access").write_text("DeviceFileMode: 292\n")
    assert procfs.mig_caps(str(tmp_path), 3, 1, 0) == [30, 31]
    assert procfs.mig_caps(str(tmp_path), 3, 1, 1) == procfs.mig_caps(str(tmp_path), 3, 2, 0) == []
