"""gpu-count: the node has fewer or more GPUs than it should, for no reason that another check knows.

Source: the list of a complete sweep, `health.expected_gpus`, NVIDIA's controllers on the PCI bus.
Threshold: any difference. GPUs that were known and are gone are `gpu-lost`'s and are not counted a second time, so that
one lost GPU does not condemn the node where the scheduler can spare it.
Severity: ERROR on the node for fewer than expected; WARNING for more, and for a controller on the bus that the driver
does not serve (it may be excluded, or passed through to a virtual machine, on purpose: set `expected_gpus` to be
strict). INFO for a node without any GPU, which is well.
Action: reboot_node for fewer than expected.
Clears: the count is right.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene

NAME = "gpu-count"


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield what is wrong with the number of GPUs."""
    if scene.without_gpus(settings):
        yield Finding(NAME, "", Severity.INFO, "no NVIDIA GPU on this node: nothing to watch")
        return
    if not scene.complete:
        return
    listed = len(scene.facts.gpus)
    gone = len(scene.absent)
    pci = scene.facts.pci
    on_bus = None if pci is None else len(pci)
    seen = f"NVML lists {listed} GPUs" + ("" if on_bus is None else f", {on_bus} on the PCI bus")
    expected = settings.expected_gpus
    if expected < 0:
        if on_bus is not None and on_bus > listed + gone:
            unserved = ", ".join(_unserved(scene))
            yield Finding(NAME, "", Severity.WARNING, f"the driver does not serve every GPU: {seen} (not {unserved})")
    elif expected < listed:
        yield Finding(NAME, "", Severity.WARNING, f"{expected} GPUs expected: {seen}")
    elif expected > listed + gone:
        evidence = f"{expected} GPUs expected: {seen}"
        yield Finding(NAME, "", Severity.ERROR, evidence, RecoveryAction.REBOOT_NODE)


def _unserved(scene: Scene) -> Iterator[str]:
    """The GPUs on the bus that NVML does not list and never did, each with the driver that has it."""
    listed = {gpu.bus_id for gpu in scene.facts.gpus} | {unit.bus_id for unit in scene.units.values()}
    for bus_id, driver in (scene.facts.pci or {}).items():
        if bus_id not in listed:
            yield f"{bus_id} (driver {driver})" if driver not in ("", "nvidia") else bus_id
