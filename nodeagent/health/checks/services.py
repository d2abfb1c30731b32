"""services: a daemon of NVIDIA's that the GPUs need does not run.

Source: systemd's state of the units in `health.services` (nvidia-fabricmanager, nvidia-persistenced), asked twice a
minute. Units that are not installed, are masked, or were never enabled and have not failed are none of this node's.
Threshold: any state but active and on its way there (activating, reloading), in two answers (`health.strikes`).
Severity: ERROR on the node for the fabric manager where GPUs are in an NVLink fabric: without it running jobs are ended
and CUDA starts no new ones (Fabric Manager User Guide, ABORT_CUDA_JOBS_ON_FM_EXIT). INFO for it where none is: there it
has nothing to manage, and says so by failing. WARNING for all others.
Action: reboot_node for the fabric manager: `systemctl restart` may do as well. None for the others.
Clears: the unit is active.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.gpu.host import Service
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene

NAME = "services"
FABRIC_MANAGER = "nvidia-fabricmanager"
RUNNING = ("active", "activating", "reloading")
ENABLED = ("enabled", "enabled-runtime")


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the services that do not run."""
    if scene.without_gpus(settings):
        return
    for service in scene.facts.services:
        if not _is_down(service):
            continue
        how = service.active if service.result in ("", "success") else f"{service.active} ({service.result})"
        evidence = f"service {service.name} is {how}; see `systemctl status {service.name}`"
        if service.name != FABRIC_MANAGER:
            yield Finding(NAME, "", Severity.WARNING, evidence, at=service.at)
        elif any(gpu.fabric_state for gpu in scene.read.values()):
            yield Finding(NAME, "", Severity.ERROR, evidence, RecoveryAction.REBOOT_NODE, service.at)
        else:
            yield Finding(NAME, "", Severity.INFO, evidence)


def _is_down(service: Service) -> bool:
    """Whether somebody wanted it to run, and it does not."""
    if service.load != "loaded" or service.active in RUNNING:
        return False
    return service.file in ENABLED or service.active == "failed"
