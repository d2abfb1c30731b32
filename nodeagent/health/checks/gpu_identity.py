"""gpu-identity: other GPUs are in the node than the site's list says.

Source: UUID and serial as NVML gives them.
Threshold: any difference from `health.expect.gpus` (serials, or UUIDs; an empty list: not checked).
Severity: WARNING: on a GPU that is not listed; on the node for a listed one that a complete sweep has not. One that was
known earlier in this boot is `gpu-lost`'s. A GPU whose serial is not known is held against its UUID alone, and against
nothing where the list has serials.
Action: inspect_hardware.
Clears: list and node agree.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene

NAME = "gpu-identity"


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield GPUs that are not listed and listed ones that are not there."""
    listed = settings.expect.gpus
    if not listed:
        return
    serials = any(not name.startswith("GPU-") for name in listed)
    known = set()
    blank = bool(scene.nameless)
    for uuid, unit in scene.units.items():
        known |= {uuid, unit.serial}
        if uuid in listed or unit.serial in listed:
            continue
        if serials and not unit.serial:
            blank = True
        elif uuid in scene.read:
            evidence = f"{unit.place} (serial {unit.serial or 'unknown'}, {uuid}) is not in this node's list"
            yield Finding(NAME, uuid, Severity.WARNING, evidence, RecoveryAction.INSPECT_HARDWARE)
    for name in listed if scene.complete and not blank else ():
        if name not in known:
            evidence = f"GPU {name} is in this node's list and not in the node"
            yield Finding(NAME, "", Severity.WARNING, evidence, RecoveryAction.INSPECT_HARDWARE)
