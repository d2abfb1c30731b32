"""driver-init: NVML as a whole does not start.

Source: the return code of nvmlInit or of the device count (nvml.h, `nvmlReturn_t`).
Threshold: any code, on a node that has an NVIDIA GPU on its bus, ought to have one, or had one earlier in this boot.
That no kernel module is loaded is `kernel-module`'s.
Severity: ERROR on the node; UNKNOWN where the code speaks of the prober and not of the driver (1 not initialised, 4 no
permission, 10 time-out, 20 no memory). Each known GPU is UNKNOWN meanwhile.
Action: reboot_node, the one that leaves a node with matching library and module; the evidence says what is amiss.
Clears: NVML starts.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.gpu.facts import NodeFacts
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene

NAME = "driver-init"
PROBERS_OWN = (1, 4, 10, 20)


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield what keeps NVML from starting, and that no GPU can be judged."""
    code = scene.facts.nvml_error
    if code is None or scene.module_missing or scene.without_gpus(settings):
        return
    evidence = f"NVML does not start: {_why(code, scene.facts)}"
    if code in PROBERS_OWN:
        yield Finding(NAME, "", Severity.UNKNOWN, evidence)
    else:
        yield Finding(NAME, "", Severity.ERROR, evidence, RecoveryAction.REBOOT_NODE)
    for uuid in scene.unread:
        yield Finding(NAME, uuid, Severity.UNKNOWN, f"not read: {evidence}")


def _why(code: int, facts: NodeFacts) -> str:
    module = f"kernel module {facts.kernel_driver}" if facts.kernel_driver else "no kernel module seen"
    known = {
        9: f"the driver is not loaded ({module}) (9)",
        12: f"libnvidia-ml.so.1 is missing or broken; install the driver's libraries ({module}) (12)",
        17: f"the operating system blocks it, a cgroup perhaps ({module}) (17)",
        18: f"versions of driver library and kernel module differ ({module}) (18)",
    }
    text = " ".join(facts.nvml_error_text.split()) or "no text"
    return known.get(code, f"{text} ({module}) ({code})")
