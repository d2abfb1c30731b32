"""kernel-module: there are NVIDIA GPUs on the PCI bus, and no kernel module of NVIDIA's is loaded.

Source: NVIDIA's controllers in /sys/bus/pci/devices, each with the kernel driver that has it;
/proc/driver/nvidia/version and /sys/module/nvidia.
Threshold: any. What NVML says of it (9, 12) is not told a second time by `driver-init`.
Severity: ERROR on the node. Each known GPU is UNKNOWN meanwhile.
Action: reboot_node: the usual reason is a kernel without its module (DKMS), or nouveau that was quicker.
Clears: the module is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene

NAME = "kernel-module"
_MOST_NAMED = 8


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield that the module is missing, and that no GPU can be judged."""
    if not scene.module_missing or scene.without_gpus(settings):
        return
    on_bus = scene.facts.pci or {}
    names = [f"{bus_id} (driver {driver})" if driver else bus_id for bus_id, driver in on_bus.items()]
    shown = ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")
    evidence = f"the kernel module nvidia is not loaded, and {len(names)} GPUs are on the PCI bus: {shown}"
    yield Finding(NAME, "", Severity.ERROR, evidence, RecoveryAction.REBOOT_NODE)
    for uuid in scene.unread:
        yield Finding(NAME, uuid, Severity.UNKNOWN, f"{scene.units[uuid].place} not read: no kernel module is loaded")
