"""A tree that looks like the node's /proc, /sys and /dev, consistent with a scenario.

It is laid out once: call `fake_roots` again after a change (an absent GPU, MIG) that should show in it.
"""

import os
import shutil
import stat
import time
import uuid
from pathlib import Path
from typing import TypedDict

from .scenario import Scenario
from .topology import CPUS_PER_NUMA_NODE

_NVIDIA_MAJOR, _UVM_MAJOR, _CAPS_MAJOR = 195, 511, 237
_GIGATRANSFERS = {1: "2.5", 2: "5.0", 3: "8.0", 4: "16.0", 5: "32.0", 6: "64.0"}
_GPU_INSTANCES, _COMPUTE_INSTANCES = 15, 8


class Roots(TypedDict):
    """The values of the configuration's `roots`."""

    proc: Path
    sys: Path
    dev: Path


def linux_address(bus_id: str) -> str:
    """`00000000:1B:00.0` (NVML) as the kernel writes it: `0000:1b:00.0`."""
    return bus_id[-12:].lower()


def fake_roots(directory: Path, scenario: Scenario) -> Roots:
    """Lay out `proc`, `sys` and `dev` below `directory`, in place of what is there; `dev/kmsg` is kept.

    Device nodes are real where the caller may make them, otherwise plain files of the same names.
    """
    roots = Roots(proc=directory / "proc", sys=directory / "sys", dev=directory / "dev")
    log = roots["dev"] / "kmsg"
    logged = log.read_bytes() if log.exists() else b""
    for root in (roots["proc"], roots["sys"], roots["dev"]):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
    log.write_bytes(logged)
    _lay_out_driver(roots, scenario)
    for gpu in scenario.slots:
        if scenario.state(gpu) != "absent":
            _lay_out_gpu(roots, scenario, gpu)
    with scenario.edit():
        scenario.control = roots["dev"] / "nvidiactl"
    return roots


def log_xid(roots: Roots, scenario: Scenario, gpu: int, number: int, text: str = "pid=4711, name=train") -> None:
    """Append to `dev/kmsg` what the driver would log for an XID, stamped with the monotonic clock."""
    address = linux_address(scenario.bus_id(gpu))[:-2]
    log = roots["dev"] / "kmsg"
    sequence = len(log.read_bytes().splitlines())
    line = f"4,{sequence},{time.monotonic_ns() // 1000},-;NVRM: Xid (PCI:{address}): {number}, {text}\n"
    with open(log, "a", encoding="ascii") as file:
        file.write(line)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _node(path: Path, major: int, minor: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        path.chmod(0o666)
    except PermissionError:
        path.touch(mode=0o666)


def _lay_out_driver(roots: Roots, scenario: Scenario) -> None:
    proc, dev = roots["proc"], roots["dev"]
    _write(
        proc / "driver/nvidia/version",
        f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {scenario.driver}  Tue Apr  8 12:41:17 UTC 2025\n"
        "GCC version:  gcc version 12.2.0\n",
    )
    _write(
        proc / "driver/nvidia/params",
        "ModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: 0\nDeviceFileMode: 438\n",
    )
    _write(
        proc / "devices",
        f"Character devices:\n{_NVIDIA_MAJOR} nvidia-frontend\n{_CAPS_MAJOR} nvidia-caps\n"
        f"{_UVM_MAJOR} nvidia-uvm\n\nBlock devices:\n  8 sd\n",
    )
    boot = uuid.uuid5(uuid.NAMESPACE_DNS, f"boot.{scenario.node}")
    _write(proc / "sys/kernel/random/boot_id", f"{boot}\n")
    _write(roots["sys"] / "module/nvidia/version", f"{scenario.driver}\n")
    (proc / "driver/nvidia/gpus").mkdir(parents=True)
    (roots["sys"] / "bus/pci/devices").mkdir(parents=True)
    for numa in {scenario.get(gpu, "numa_node") for gpu in scenario.slots}:
        _write(roots["sys"] / f"devices/system/node/node{numa}/cpulist", f"{_cpus(int(numa or 0))}\n")
    _node(dev / "nvidiactl", _NVIDIA_MAJOR, 255)
    _node(dev / "nvidia-modeset", _NVIDIA_MAJOR, 254)
    _node(dev / "nvidia-uvm", _UVM_MAJOR, 0)
    _node(dev / "nvidia-uvm-tools", _UVM_MAJOR, 1)


def _cpus(numa_node: int) -> str:
    first = numa_node * CPUS_PER_NUMA_NODE
    return f"{first}-{first + CPUS_PER_NUMA_NODE - 1}"


def _lay_out_gpu(roots: Roots, scenario: Scenario, gpu: int) -> None:
    value = {key: scenario.get(gpu, key) for key in ("name", "vbios", "firmware", "minor")}
    address = linux_address(scenario.bus_id(gpu))
    firmware = "N/A" if value["firmware"] is None else value["firmware"]
    _write(
        roots["proc"] / "driver/nvidia/gpus" / address / "information",
        f"Model: \t\t {value['name']}\n"
        f"IRQ:   \t\t {120 + gpu}\n"
        f"GPU UUID: \t {scenario.uuid(gpu)}\n"
        f"Video BIOS: \t {value['vbios']}\n"
        "Bus Type: \t PCIe\n"
        "DMA Size: \t 52 bits\n"
        "DMA Mask: \t 0xfffffffffffff\n"
        f"Bus Location: \t {address}\n"
        f"Device Minor: \t {value['minor']}\n"
        f"GPU Firmware: \t {firmware}\n"
        "GPU Excluded:\t No\n",
    )
    for name, text in _pci_attributes(scenario, gpu).items():
        _write(roots["sys"] / "bus/pci/devices" / address / name, f"{text}\n")
    (roots["sys"] / "bus/pci/devices" / address / "driver").symlink_to("../../../../bus/pci/drivers/nvidia")
    _write(roots["sys"] / f"bus/pci/slots/{gpu + 1}/address", f"{address.partition('.')[0]}\n")
    _node(roots["dev"] / f"nvidia{value['minor']}", _NVIDIA_MAJOR, int(value["minor"] or 0))
    if scenario.get(gpu, "mig_mode") is not None:
        _lay_out_mig(roots, scenario, gpu)


def _pci_attributes(scenario: Scenario, gpu: int) -> dict[str, str]:
    def number(key: str) -> int:
        return int(scenario.get(gpu, key) or 0)

    return {
        "vendor": "0x10de",
        "device": f"0x{number('pci_device_id') >> 16:04x}",
        "class": "0x030200",
        "numa_node": str(number("numa_node")),
        "local_cpulist": _cpus(number("numa_node")),
        "current_link_width": str(number("pcie_width")),
        "max_link_width": str(number("pcie_width_max")),
        "current_link_speed": f"{_GIGATRANSFERS[number('pcie_generation')]} GT/s PCIe",
        "max_link_speed": f"{_GIGATRANSFERS[number('pcie_generation_max')]} GT/s PCIe",
        "enable": "1",
    }


def _lay_out_mig(roots: Roots, scenario: Scenario, gpu: int) -> None:
    """The driver's table of capability minors for this GPU, and the device nodes of the instances there are."""
    minors = roots["proc"] / "driver/nvidia-caps/mig-minors"
    if not minors.exists():
        _write(minors, "config 1\nmonitor 2\n")
        _node(roots["dev"] / "nvidia-caps/nvidia-cap1", _CAPS_MAJOR, 1)
        _node(roots["dev"] / "nvidia-caps/nvidia-cap2", _CAPS_MAJOR, 2)
    per_instance = 1 + _COMPUTE_INSTANCES
    first = 3 + int(scenario.get(gpu, "minor") or 0) * _GPU_INSTANCES * per_instance
    lines = []
    for gi in range(_GPU_INSTANCES):
        base = first + gi * per_instance
        lines.append(f"gpu{scenario.get(gpu, 'minor')}/gi{gi}/access {base}\n")
        for ci in range(_COMPUTE_INSTANCES):
            lines.append(f"gpu{scenario.get(gpu, 'minor')}/gi{gi}/ci{ci}/access {base + 1 + ci}\n")
    with open(minors, "a", encoding="ascii") as file:
        file.writelines(lines)
    home = roots["proc"] / f"driver/nvidia/capabilities/gpu{scenario.get(gpu, 'minor')}/mig"
    for instance in scenario.mig_instances(gpu):
        base = first + instance.gi * per_instance
        place = home / f"gi{instance.gi}"
        for minor, access in ((base, place), (base + 1 + instance.ci, place / f"ci{instance.ci}")):
            _write(access / "access", f"DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n")
            path = roots["dev"] / f"nvidia-caps/nvidia-cap{minor}"
            if not path.exists():
                _node(path, _CAPS_MAJOR, minor)
