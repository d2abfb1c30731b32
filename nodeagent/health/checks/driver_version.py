"""driver-version: the driver is not one that the site wants, or its parts are of two versions.

Source: NVML's driver version, the version of the kernel module that is loaded (/proc/driver/nvidia/version).
Threshold: none of `health.expect.drivers` fits (an empty list: not checked); the two differ.
Severity: WARNING on the node.
Action: none; two versions: reboot_node, the one that leaves a node with parts that match.
Clears: the version is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene

NAME = "driver-version"


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield what is wrong with the driver's version."""
    driver, module, wanted = scene.facts.driver, scene.facts.kernel_driver, settings.expect.drivers
    if driver and wanted and not any(fnmatchcase(driver, pattern) for pattern in wanted):
        yield Finding(NAME, "", Severity.WARNING, f"driver {driver} is loaded, and {' or '.join(wanted)} is wanted")
    if driver and module and driver != module:
        evidence = f"NVML says driver {driver}, and the kernel module that is loaded is {module}"
        yield Finding(NAME, "", Severity.WARNING, evidence, RecoveryAction.REBOOT_NODE)
