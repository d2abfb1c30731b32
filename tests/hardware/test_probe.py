"""The probe process reads every GPU: in its time, as /proc and PCI know them, in base units."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nodeagent.config.model import Config
from nodeagent.gpu.facts import GpuFacts, NodeFacts
from nodeagent.gpu.probe import ProbeProcess
from nodeagent.gpu.procfs import PciBus, gpu_bus_ids, gpu_identity, numa_node
from tests.hardware.place import Place

LATER = 20


@pytest.fixture(scope="module")
def probe(here: Place) -> Iterator[ProbeProcess]:
    """A probe process with the settings that an agent has by default."""
    source = ProbeProcess(Config(roots=here.roots))
    yield source
    source.close()


@pytest.fixture(scope="module")
def first(probe: ProbeProcess, facts: dict[str, Any]) -> NodeFacts:
    """The first sweep: it starts the process and opens NVML."""
    began = time.monotonic()
    found = probe.sample()
    facts["first_sweep_s"] = round(time.monotonic() - began, 4)
    facts.update(driver=found.driver, nvml=found.nvml_version, gpus=[gpu.name for gpu in found.gpus])
    return found


@pytest.fixture(scope="module")
def later(probe: ProbeProcess, first: NodeFacts, facts: dict[str, Any]) -> NodeFacts:
    """The last of some more, from which on all is as on a node that runs."""
    found, took = first, []
    for _ in range(LATER):
        began = time.monotonic()
        found = probe.sample()
        took.append(time.monotonic() - began)
    facts["later_sweeps_s"] = {"median": round(statistics.median(took), 5), "worst": round(max(took), 5), "n": LATER}
    return found


@pytest.mark.timeout(600)
def test_every_gpu_is_read_in_time(here: Place, first: NodeFacts, later: NodeFacts, facts: dict[str, Any]) -> None:
    for found in (first, later):
        assert (found.nvml_error, found.hung, found.crashed) == (None, False, None), found.nvml_error_text
        assert len(found.gpus) == here.gpus
        assert [gpu.error for gpu in found.gpus] == [None] * here.gpus
        assert found.driver and found.nvml_version
    assert first.duration < Config().probe_timeout
    assert facts["later_sweeps_s"]["worst"] < Config().probe_timeout


def test_no_call_failed_for_no_reason(later: NodeFacts) -> None:
    assert {gpu.uuid: gpu.failed_calls for gpu in later.gpus if gpu.failed_calls} == {}


def test_pci_and_nvml_count_alike(here: Place, later: NodeFacts) -> None:
    assert later.pci == PciBus(here.roots.sys).gpus()
    assert set(later.pci or {}) == {gpu.bus_id for gpu in later.gpus}


def test_the_driver_knows_the_same_gpus(here: Place, later: NodeFacts) -> None:
    known = gpu_bus_ids(here.roots.proc)
    if not known:
        return  # a container without /proc/driver/nvidia
    assert sorted(gpu.bus_id for gpu in later.gpus) == known
    assert later.kernel_driver == later.driver
    for gpu in later.gpus:
        identity = gpu_identity(here.roots.proc, gpu.bus_id)
        assert identity is not None
        assert identity.uuid in ("", gpu.uuid)
        assert (identity.minor, identity.model) == (gpu.minor, gpu.name)
        assert identity.vbios.lower() in ("", gpu.vbios.lower())


def test_identities_are_whole(here: Place, later: NodeFacts) -> None:
    for gpu in later.gpus:
        assert gpu.uuid.startswith("GPU-") and len(gpu.uuid) == 40
        assert gpu.numa_node == numa_node(here.roots.sys, gpu.bus_id)
    for values in ([gpu.uuid for gpu in later.gpus], [gpu.bus_id for gpu in later.gpus]):
        assert len(set(values)) == len(values)
    assert sorted(gpu.index or 0 for gpu in later.gpus) == list(range(len(later.gpus)))


RANGES = {
    "utilization": (0, 1),
    "memory_utilization": (0, 1),
    "memory_total": (1 << 30, 1 << 40),
    "memory_used": (0, 1 << 40),
    "temperature": (1, 110),
    "memory_temperature": (1, 120),
    "temperature_margin": (-20, 110),
    "slowdown_temperature": (60, 130),
    "shutdown_temperature": (60, 140),
    "power": (1, 2000),
    "power_limit": (20, 2000),
    "energy": (0, 1e12),
    "sm_clock": (0, 5e9),
    "sm_clock_max": (5e8, 5e9),
    "memory_clock": (0, 2e10),
    "performance_state": (0, 32),
    "pcie_generation": (1, 7),
    "pcie_generation_max": (1, 7),
    "pcie_width": (1, 16),
    "pcie_width_max": (1, 16),
    "compute_mode": (0, 3),
}
"""What a value in base units can be on any board; in NVML's own units most would lie far outside."""


@pytest.mark.parametrize("name", sorted(RANGES))
def test_values_are_in_base_units(later: NodeFacts, name: str) -> None:
    least, most = RANGES[name]
    for gpu in later.gpus:
        value = getattr(gpu, name)
        assert value is None or least <= value <= most


def test_what_every_board_has_is_read(later: NodeFacts) -> None:
    wanted = ("minor", "name", "memory_total", "memory_used", "temperature", "pcie_width", "processes_known")
    missing = {gpu.uuid: [name for name in wanted if getattr(gpu, name) is None] for gpu in later.gpus}
    assert not any(missing.values()), missing
    assert all(_used(gpu) <= (gpu.memory_total or 0) for gpu in later.gpus)


def _used(gpu: GpuFacts) -> int:
    return gpu.memory_used or 0


def test_energy_only_grows(first: NodeFacts, later: NodeFacts) -> None:
    before = {gpu.uuid: gpu.energy for gpu in first.gpus}
    for gpu in later.gpus:
        was = before[gpu.uuid]
        assert was is None or gpu.energy is None or gpu.energy >= was
