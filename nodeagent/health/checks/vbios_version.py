"""vbios-version: a GPU's firmware is not one that the site wants, or GPUs of one model differ in it.

Source: NVML's VBIOS version.
Threshold: none of `health.expect.vbios` fits (an empty list: not checked); two versions on one model.
Severity: WARNING on the GPU for one that is not wanted. INFO on the node for a mixture: boards that were exchanged
differ, and work.
Action: none.
Clears: the version is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, Severity
from nodeagent.health.scene import Scene

NAME = "vbios-version"


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs with another firmware than wanted, and models with several."""
    wanted = settings.expect.vbios
    versions: dict[str, set[str]] = {}
    for uuid, gpu in scene.read.items():
        if not gpu.vbios:
            continue
        versions.setdefault(gpu.name, set()).add(gpu.vbios)
        if wanted and not any(fnmatchcase(gpu.vbios, pattern) for pattern in wanted):
            evidence = f"VBIOS of {scene.units[uuid].place} is {gpu.vbios}, and {' or '.join(wanted)} is wanted"
            yield Finding(NAME, uuid, Severity.WARNING, evidence)
    for model, found in versions.items():
        if len(found) > 1:
            evidence = f"VBIOS of {model or 'GPUs of no name'} are mixed: {', '.join(sorted(found))}"
            yield Finding(NAME, "", Severity.INFO, evidence)
