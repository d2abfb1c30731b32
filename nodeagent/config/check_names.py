"""The names by which findings go: the checks of our own, and `site-NAME` for each of the site's.

Written down once more because nothing here may import the checks, which read the configuration. A test holds this list
against their registry.
"""

from __future__ import annotations

OWN_CHECKS = (
    "kernel-module",
    "driver-init",
    "driver-unresponsive",
    "probe-crashed",
    "gpu-lost",
    "gpu-count",
    "reset-required",
    "xid",
    "sxid",
    "ecc-uncorrected",
    "ecc-corrected",
    "row-remapping",
    "retired-pages",
    "sram-errors",
    "hardware-slowdown",
    "temperature",
    "power-readout",
    "pcie-link",
    "pcie-replays",
    "nvlink-down",
    "nvlink-errors",
    "fabric-state",
    "gpu-modes",
    "driver-version",
    "vbios-version",
    "gpu-identity",
    "memory-held",
    "stuck-readings",
    "numa-affinity",
    "device-files",
    "rogue-process",
    "services",
    "infiniband",
    "state-space",
)
SITE_PREFIX = "site-"
