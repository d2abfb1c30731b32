"""The checks: each a pure function from a Scene and the settings to findings. A new one is a module and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from nodeagent.config.model import Health
from nodeagent.health.checks import (
    device_files,
    driver_init,
    driver_unresponsive,
    driver_version,
    ecc_corrected,
    ecc_uncorrected,
    fabric_state,
    gpu_count,
    gpu_identity,
    gpu_lost,
    gpu_modes,
    hardware_slowdown,
    infiniband,
    kernel_module,
    memory_held,
    numa_affinity,
    nvlink_down,
    nvlink_errors,
    pcie_link,
    pcie_replays,
    power_readout,
    probe_crashed,
    reset_required,
    retired_pages,
    rogue_process,
    row_remapping,
    services,
    site,
    sram_errors,
    state_space,
    stuck_readings,
    sxid,
    temperature,
    vbios_version,
    xid,
)
from nodeagent.health.finding import Finding
from nodeagent.health.scene import Scene
from nodeagent.health.series import NodeSeries, Series

Check = Callable[[Scene, Health], Iterator[Finding]]

CHECKS: Mapping[str, Check] = {
    kernel_module.NAME: kernel_module.find,
    driver_init.NAME: driver_init.find,
    driver_unresponsive.NAME: driver_unresponsive.find,
    probe_crashed.NAME: probe_crashed.find,
    gpu_lost.NAME: gpu_lost.find,
    gpu_count.NAME: gpu_count.find,
    reset_required.NAME: reset_required.find,
    xid.NAME: xid.find,
    sxid.NAME: sxid.find,
    ecc_uncorrected.NAME: ecc_uncorrected.find,
    ecc_corrected.NAME: ecc_corrected.find,
    row_remapping.NAME: row_remapping.find,
    retired_pages.NAME: retired_pages.find,
    sram_errors.NAME: sram_errors.find,
    hardware_slowdown.NAME: hardware_slowdown.find,
    temperature.NAME: temperature.find,
    power_readout.NAME: power_readout.find,
    pcie_link.NAME: pcie_link.find,
    pcie_replays.NAME: pcie_replays.find,
    nvlink_down.NAME: nvlink_down.find,
    nvlink_errors.NAME: nvlink_errors.find,
    fabric_state.NAME: fabric_state.find,
    gpu_modes.NAME: gpu_modes.find,
    driver_version.NAME: driver_version.find,
    vbios_version.NAME: vbios_version.find,
    gpu_identity.NAME: gpu_identity.find,
    memory_held.NAME: memory_held.find,
    stuck_readings.NAME: stuck_readings.find,
    numa_affinity.NAME: numa_affinity.find,
    device_files.NAME: device_files.find,
    rogue_process.NAME: rogue_process.find,
    services.NAME: services.find,
    infiniband.NAME: infiniband.find,
    state_space.NAME: state_space.find,
    site.NAME: site.find,
}

SERIES: Mapping[str, Series] = {
    **ecc_corrected.SERIES,
    **hardware_slowdown.SERIES,
    **temperature.SERIES,
    **power_readout.SERIES,
    **pcie_link.SERIES,
    **pcie_replays.SERIES,
    **nvlink_down.SERIES,
    **nvlink_errors.SERIES,
    **fabric_state.SERIES,
    **memory_held.SERIES,
    **stuck_readings.SERIES,
}
"""What checks follow over time on each GPU, by the name under which the window is kept."""

NODE_SERIES: Mapping[str, NodeSeries] = {**infiniband.NODE_SERIES}
"""The same for the node as a whole."""
