"""numa-affinity: nobody says which NUMA node a GPU is at, though the node's other GPUs are known to have one.

Source: /sys/bus/pci/devices/BUS_ID/numa_node (-1: the firmware does not say).
Threshold: any. Where it is so of all GPUs the machine may have a single node, and nothing is said.
Severity: WARNING: schedulers bind jobs to the wrong cores.
Action: none: the firmware's tables (ACPI SRAT) are wrong.
Clears: the NUMA node is known.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, Severity
from nodeagent.health.scene import Scene

NAME = "numa-affinity"


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs without a NUMA node."""
    if all(gpu.numa_node is None for gpu in scene.read.values()):
        return
    for uuid, gpu in scene.read.items():
        if gpu.numa_node is None and gpu.error is None:
            yield Finding(NAME, uuid, Severity.WARNING, f"NUMA node of {scene.units[uuid].place} is unknown")
