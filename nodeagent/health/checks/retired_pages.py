"""retired-pages: pages of memory are retired, or wait for it (GPUs before row remapping).

Source: NVML's retired pages of both causes, and its pending status.
Threshold: one pending; more than `health.memory_errors.retired_pages` (60).
Severity: ERROR. A page that is pending is still in use, and on such GPUs nothing contains its errors.
Action: pending: reset_gpu, which takes the page out; too many: inspect_hardware (NVIDIA takes the board back).
Clears: pending: the reset. The count never falls: the board is replaced, or the site allows more.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene

NAME = "retired-pages"


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs with pages that wait to be retired, or with too many that are."""
    limit = settings.memory_errors.retired_pages
    for uuid, gpu in scene.read.items():
        place = scene.units[uuid].place
        if gpu.retirement_pending:
            evidence = f"a bad memory page of {place} is retired at its next reset"
            yield Finding(NAME, uuid, Severity.ERROR, evidence, RecoveryAction.RESET_GPU)
        if gpu.retired_pages is not None and gpu.retired_pages > limit:
            evidence = f"{gpu.retired_pages} retired memory pages on {place}, more than {limit}"
            yield Finding(NAME, uuid, Severity.ERROR, evidence, RecoveryAction.INSPECT_HARDWARE)
