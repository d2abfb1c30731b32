"""The checks: each a pure function from a Scene and the settings to findings. A new one is a module and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from nodeagent.config.model import Health
from nodeagent.health.checks import (
    driver_init,
    driver_unresponsive,
    ecc_uncorrected,
    gpu_count,
    gpu_lost,
    probe_crashed,
    reset_required,
    site,
    xid,
)
from nodeagent.health.finding import Finding
from nodeagent.health.scene import Scene

Check = Callable[[Scene, Health], Iterator[Finding]]

CHECKS: Mapping[str, Check] = {
    driver_init.NAME: driver_init.find,
    driver_unresponsive.NAME: driver_unresponsive.find,
    probe_crashed.NAME: probe_crashed.find,
    gpu_lost.NAME: gpu_lost.find,
    gpu_count.NAME: gpu_count.find,
    reset_required.NAME: reset_required.find,
    xid.NAME: xid.find,
    ecc_uncorrected.NAME: ecc_uncorrected.find,
    site.NAME: site.find,
}
