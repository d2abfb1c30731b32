"""device-files: a GPU answers, but its file /dev/nvidiaN is missing or is no device.

Source: the type of /dev/nvidiaN, N by NVML's minor number, against that of /dev/nvidiactl.
Threshold: any. Without /dev/nvidiactl nothing is said; /dev/nvidia-uvm is not asked for: CUDA's first use makes it.
Severity: WARNING: jobs cannot open the GPU, unless nvidia-modprobe makes the file when they start.
Action: none: `nvidia-modprobe -c N` makes it; a udev rule or a clean-up of /dev took it.
Clears: the file is there.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, Severity
from nodeagent.health.scene import Scene

NAME = "device-files"


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs that have no device file."""
    for uuid, gpu in scene.read.items():
        if gpu.device_file is False and gpu.error is None:
            evidence = f"/dev/nvidia{gpu.minor} of {scene.units[uuid].place} is missing or no device"
            yield Finding(NAME, uuid, Severity.WARNING, evidence)
