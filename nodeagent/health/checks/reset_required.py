"""reset-required: the driver says that the GPU needs a recovery.

Source: NVML's return code for the GPU (16, `NVML_ERROR_RESET_REQUIRED`); field value 230
(`NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`, drivers from 565 on), which XID 154 announces; field values 226 and 227
(`NVML_FI_DEV_RESET_STATUS`, `NVML_FI_DEV_DRAIN_AND_RESET_STATUS`), which drivers since 550 set.
Threshold: 16, or any value but 0.
Severity: ERROR; UNKNOWN for a value that this release does not know.
Action: 1 reset, 4 drain and reset, 6 bus reset: reset_gpu. 3 drain P2P: reset_gpu too, since what it asks for is that
no new work comes until it is over. 2 node reboot, 5 recover the IMEX domain (its daemon lives on the node), 7 system
reboot: reboot_node. 226 and 227: reset_gpu, told only where 230 says nothing.
Clears: the driver takes it back.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.gpu.facts import GpuFacts
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene

NAME = "reset-required"
RESET_REQUIRED = 16
ACTIONS = {
    1: ("GPU reset", RecoveryAction.RESET_GPU),
    2: ("node reboot", RecoveryAction.REBOOT_NODE),
    3: ("drain P2P", RecoveryAction.RESET_GPU),
    4: ("drain P2P and reset", RecoveryAction.RESET_GPU),
    5: ("recover the IMEX domain", RecoveryAction.REBOOT_NODE),
    6: ("bus reset", RecoveryAction.RESET_GPU),
    7: ("system reboot", RecoveryAction.REBOOT_NODE),
}


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs that ask for a recovery."""
    for uuid, gpu in scene.read.items():
        place = scene.units[uuid].place
        if gpu.error == RESET_REQUIRED:
            evidence = f"{place} requires a reset: NVML answers 16"
            yield Finding(NAME, uuid, Severity.ERROR, evidence, RecoveryAction.RESET_GPU)
        if not gpu.recovery_action:
            yield from _older_words(uuid, place, gpu)
        elif gpu.recovery_action in ACTIONS:
            words, action = ACTIONS[gpu.recovery_action]
            evidence = f"{place}: the driver asks for {words} (recovery action {gpu.recovery_action})"
            yield Finding(NAME, uuid, Severity.ERROR, evidence, action)
        else:
            evidence = f"{place}: the driver asks for an unknown recovery action {gpu.recovery_action}"
            yield Finding(NAME, uuid, Severity.UNKNOWN, evidence)


def _older_words(uuid: str, place: str, gpu: GpuFacts) -> Iterator[Finding]:
    """What drivers without a recovery action say."""
    wanted = (("a reset", gpu.reset_status), ("a drain and a reset", gpu.drain_and_reset_status))
    for words, status in wanted:
        if status:
            evidence = f"{place}: the driver asks for {words} (status {status})"
            yield Finding(NAME, uuid, Severity.ERROR, evidence, RecoveryAction.RESET_GPU)
