"""gpu-modes: a GPU is not in the modes that the site wants.

Source: NVML's persistence, compute, ECC and MIG mode.
Threshold: another than `health.expect.persistence`, `…compute_mode`, `…ecc`, `…mig` (any: not checked).
Severity: WARNING.
Action: reset_gpu for ECC and MIG, which change with a reset; none for the others, which are set at once (`cleanup` does
so between two jobs).
Clears: the mode is as wanted.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.gpu.facts import GpuFacts
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene

NAME = "gpu-modes"
COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}
"""nvml.h, nvmlComputeMode_t."""


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs in another mode than wanted, each mode by itself."""
    for uuid, gpu in scene.read.items():
        for mode, wanted, found, action in _modes(gpu, settings):
            if wanted != "any" and found is not None and found != wanted:
                evidence = f"{mode} of {scene.units[uuid].place} is {found}, and {wanted} is wanted"
                yield Finding(NAME, uuid, Severity.WARNING, evidence, action)


def _modes(gpu: GpuFacts, settings: Health) -> Iterator[tuple[str, str, str | None, RecoveryAction]]:
    expect = settings.expect
    mode = gpu.compute_mode
    compute = None if mode is None else COMPUTE_MODES.get(mode, str(mode))
    yield "persistence mode", expect.persistence, _switch(gpu.persistence), RecoveryAction.NONE
    yield "compute mode", expect.compute_mode, compute, RecoveryAction.NONE
    yield "ECC", expect.ecc, _switch(gpu.ecc_enabled), RecoveryAction.RESET_GPU
    yield "MIG mode", expect.mig, _switch(gpu.mig_enabled), RecoveryAction.RESET_GPU


def _switch(value: bool | None) -> str | None:
    return None if value is None else "on" if value else "off"
