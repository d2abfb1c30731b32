"""device-files: a GPU answers, but its file /dev/nvidiaN is missing, is none of its own, or is not open to users.

Source: type, number, mode and owner of /dev/nvidiaN (N: NVML's minor number), against /dev/nvidiactl's type and major
number and against mode and owner that the driver was told to give (/proc/driver/nvidia/params).
Threshold: any difference. Without /dev/nvidiactl nothing is said; /dev/nvidia-uvm is not asked for: CUDA's first use
makes it. Mode and owner are left to the site where the driver is not to touch them (ModifyDeviceFiles=0), and where
jobs are confined by them (`isolation: device-files`).
Severity: WARNING: jobs cannot open the GPU, unless nvidia-modprobe makes the file when they start.
Action: none: `nvidia-modprobe -c N` makes it; a udev rule or a clean-up of /dev took it.
Clears: the file is as it ought to be.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.gpu.facts import GpuFacts, NodeFacts
from nodeagent.gpu.host import DeviceFile, DeviceRule
from nodeagent.health.finding import Finding, Severity
from nodeagent.health.scene import Scene

NAME = "device-files"
CHARACTER = "c"


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs whose device file is not right."""
    for uuid, gpu in scene.read.items():
        wrong = "" if gpu.error is not None else _wrong(gpu, scene.facts)
        if wrong:
            evidence = f"/dev/nvidia{gpu.minor} of {scene.units[uuid].place} {wrong}"
            yield Finding(NAME, uuid, Severity.WARNING, evidence)


def _wrong(gpu: GpuFacts, facts: NodeFacts) -> str:
    """What is wrong with the file, in words; empty if nothing is, or if that cannot be said."""
    file, control = gpu.device, facts.control
    if file is None or control is None or not control.kind:
        return ""
    if file.kind != control.kind:
        return "is no device" if file.kind else "is missing"
    if file.kind == CHARACTER and (file.major, file.minor) != (control.major, gpu.minor):
        return f"is device {file.major}:{file.minor} and ought to be {control.major}:{gpu.minor}"
    return _kept_otherwise(file, facts.device_rule)


def _kept_otherwise(file: DeviceFile, rule: DeviceRule | None) -> str:
    if rule is None or not rule.modify:
        return ""
    found, wanted = (file.mode, file.uid, file.gid), (rule.mode, rule.uid, rule.gid)
    if found == wanted:
        return ""
    return f"has mode {_words(found)} and ought to have {_words(wanted)}"


def _words(kept: tuple[int, int, int]) -> str:
    mode, uid, gid = kept
    return f"{mode:04o} of {uid}:{gid}"
