"""pcie-link: the link to the host has fewer lanes, or a lower generation, than it could have.

Source: NVML's current width and generation against the greatest that GPU and system can do together.
Threshold: below `health.pcie.width` or `health.pcie.generation` (0: NVML's greatest) for `health.sustained.share` (0.6)
of the time that was observed, of which there must be a minute. The generation is observed only under load (the GPU is
busy, or in P0): an idle one turns it down to save power.
Severity: WARNING: jobs run, and move their data more slowly.
Action: inspect_hardware (riser, slot, seat).
Clears: enough time at full width and, under load, at the full generation.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.gpu.facts import GpuFacts
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene
from nodeagent.health.series import Series, Sight, window_length
from nodeagent.health.window import MINUTE, sustained

NAME = "pcie-link"
WIDTH, GENERATION = f"{NAME}:width", f"{NAME}:generation"


def _width(sight: Sight) -> float | None:
    return _below(sight.gpu.pcie_width, _wanted_width(sight.gpu, sight.settings))


def _generation(sight: Sight) -> float | None:
    if not sight.gpu.utilization and sight.gpu.performance_state != 0:
        return None
    return _below(sight.gpu.pcie_generation, _wanted_generation(sight.gpu, sight.settings))


def _below(now: int | None, wanted: int | None) -> float | None:
    return None if now is None or not wanted else float(now < wanted)


def _wanted_width(gpu: GpuFacts, settings: Health) -> int | None:
    return settings.pcie.width or gpu.pcie_width_max


def _wanted_generation(gpu: GpuFacts, settings: Health) -> int | None:
    return settings.pcie.generation or gpu.pcie_generation_max


SERIES = {WIDTH: Series(_width, window_length), GENERATION: Series(_generation, window_length)}


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs with a poor link."""
    for uuid, gpu in scene.read.items():
        unit = scene.units[uuid]
        for name, words in (
            (WIDTH, f"{_wanted_width(gpu, settings)} lanes (now {gpu.pcie_width})"),
            (GENERATION, f"generation {_wanted_generation(gpu, settings)} (now {gpu.pcie_generation})"),
        ):
            if sustained(unit.windows.get(name), settings.sustained.share, MINUTE):
                evidence = f"PCIe link of {unit.place} is below {words}"
                yield Finding(NAME, uuid, Severity.WARNING, evidence, RecoveryAction.INSPECT_HARDWARE)
