"""The faults that the catalogue's checks of readings and wishes have to find (see faults.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from nodeagent.config.thresholds import Expect
from nodeagent.gpu.facts import Process
from nodeagent.gpu.host import DeviceFile
from nodeagent.health.checks import (
    device_files,
    driver_version,
    ecc_corrected,
    fabric_state,
    gpu_identity,
    gpu_modes,
    hardware_slowdown,
    memory_held,
    numa_affinity,
    nvlink_down,
    nvlink_errors,
    pcie_link,
    pcie_replays,
    power_readout,
    retired_pages,
    row_remapping,
    sram_errors,
    stuck_readings,
    temperature,
    vbios_version,
)
from tests.corpus.fault import SLOT, Fault, Touch
from tests.corpus.world import World

LASTING = 900.0  # more than the window in which a state has to last


def _has(*names: str) -> Callable[[World], bool]:
    return lambda world: all(getattr(world.source.gpus[SLOT], name) is not None for name in names)


def _held(**values: Any) -> Touch:
    return lambda world, slot: world.pin(slot, **values)


def _warns(name: str, check: str, plant: Touch, **more: Any) -> Fault:
    """A fault that takes nothing out of service."""
    return Fault(name, check, plant, **{"state": "DEGRADED", "leads_to": "", **more})


def _memory() -> Iterator[Fault]:
    rows, pages = _has("remapping_failed"), _has("retired_pages")
    name = row_remapping.NAME
    yield Fault("remapping failed", name, _held(remapping_failed=True), returns=False, fits=rows)
    yield _warns("remapping pending", name, _held(remapping_pending=True), fits=rows)
    yield _warns("banks without spare rows", name, _held(remap_banks_exhausted=1), fits=rows)
    name = retired_pages.NAME
    yield Fault("a page waits to be retired", name, _held(retirement_pending=True), fits=pages)
    yield Fault("too many pages retired", name, _held(retired_pages=61), returns=False, fits=pages)
    name = ecc_corrected.NAME
    yield _warns("many corrected errors", name, lambda world, slot: world.count(slot, "ecc_corrected", 20_000_000))
    yield _warns("a life of corrected errors", name, _held(ecc_corrected_total=60_000_000))
    exceeded = _held(sram_threshold_exceeded=True)
    yield Fault("caches fail", sram_errors.NAME, exceeded, returns=False, fits=rows)


def _board() -> Iterator[Fault]:
    name = hardware_slowdown.NAME
    for word, reasons in (("heat", 0x48), ("power brake", 0x88), ("nothing named", 0x8)):
        yield _warns(f"slowed for {word}", name, _held(slowdown_reasons=reasons), lasts=LASTING)
    name = temperature.NAME
    yield _warns("too hot", name, _pinned_at("temperature", "slowdown_temperature"), lasts=LASTING)
    memory = _pinned_at("memory_temperature", "memory_max_temperature")
    yield _warns("memory too hot", name, memory, lasts=LASTING, fits=_has("memory_max_temperature"))
    name = power_readout.NAME
    for watts in (0.0, 5000.0, None):
        yield _warns(f"power read as {watts}", name, _held(power=watts), lasts=LASTING)


def _pinned_at(name: str, limit: str) -> Touch:
    return lambda world, slot: world.pin(slot, **{name: getattr(world.source.gpus[slot], limit)})


def _links() -> Iterator[Fault]:
    name = pcie_link.NAME
    yield _warns("half the lanes", name, _held(pcie_width=8))
    yield _warns("a slow link under load", name, _held(pcie_generation=1, utilization=1.0))
    yield _warns("many replays", pcie_replays.NAME, lambda world, slot: world.count(slot, "pcie_replays", 200))
    linked = _has("nvlink_active")
    down = nvlink_down.NAME
    yield Fault("an NVLink is down", down, lambda world, slot: _lose_links(world, slot, 1), fits=linked)
    yield Fault("no NVLink is up", down, lambda world, slot: _lose_links(world, slot, 99), fits=linked)
    name = nvlink_errors.NAME
    yield _warns("NVLink errors", name, lambda world, slot: world.count(slot, "nvlink_errors", 100_000), fits=linked)
    yield _warns("an NVLink recovery", name, lambda world, slot: world.count(slot, "nvlink_recoveries", 1), fits=linked)
    in_fabric = _has("fabric_state")
    for word, values in (("not started", {"fabric_state": 1}), ("in progress", {"fabric_state": 2})):
        yield Fault(f"fabric {word}", fabric_state.NAME, _held(**values), lasts=LASTING, fits=in_fabric)
    failed = _held(fabric_state=3, fabric_status=999)
    yield Fault("fabric failed", fabric_state.NAME, failed, lasts=LASTING, fits=in_fabric)


def _lose_links(world: World, slot: int, count: int) -> None:
    world.pin(slot, nvlink_active=max(0, (world.source.gpus[slot].nvlink_active or 0) - count))


def _wishes() -> Iterator[Fault]:
    def wants(**values: Any) -> Callable[[World], dict[str, Any]]:
        return lambda world: {"expect": Expect(**values)}

    name = gpu_modes.NAME
    yield _warns("persistence off", name, _held(persistence=False), health=wants(persistence="on"))
    yield _warns("compute mode prohibited", name, _held(compute_mode=2), health=wants(compute_mode="default"))
    yield _warns("ECC off", name, _held(ecc_enabled=False), health=wants(ecc="on"))
    yield _warns("MIG on", name, _held(mig_enabled=True), health=wants(mig="off"), fits=_has("mig_enabled"))
    name = driver_version.NAME
    yield _warns(
        "two driver versions", name, lambda world, slot: world.source.node.update(kernel_driver="535.1"),
        clear=lambda world, slot: world.source.node.update(kernel_driver=world.source.node["driver"]), on_node=True,
    )  # fmt: skip
    yield _warns(
        "another driver", name, lambda world, slot: world.source.node.update(driver="535.1", kernel_driver="535.1"),
        clear=lambda world, slot: None, on_node=True, health=wants(drivers=("550.*",)),
    )  # fmt: skip
    yield _warns("another VBIOS", vbios_version.NAME, _held(vbios="86.1"), health=wants(vbios=("96.*",)))
    name = gpu_identity.NAME
    yield _warns("a GPU not listed", name, _nothing, clear=_nothing, from_start=True, health=_listing(without=SLOT))
    yield _warns(
        "a listed GPU missing", name, _nothing, clear=_nothing, from_start=True, on_node=True,
        health=_listing(more=("1650009999999",)),
    )  # fmt: skip


def _nothing(world: World, slot: int) -> None:
    pass


def _listing(without: int = -1, more: tuple[str, ...] = ()) -> Callable[[World], dict[str, Any]]:
    def health(world: World) -> dict[str, Any]:
        serials = tuple(gpu.serial for slot, gpu in enumerate(world.source.gpus) if slot != without)
        return {"expect": Expect(gpus=(*serials, *more))}

    return health


def _working(**values: Any) -> Touch:
    """A GPU that works, as far as its links show."""

    def touch(world: World, slot: int) -> None:
        world.busy[slot] = True
        world.pin(slot, **values)

    return touch


def _senseless() -> Iterator[Fault]:
    held = _held(memory_used=2 << 30, processes=(), utilization=0.0)
    yield _warns("memory that nobody has", memory_held.NAME, held, lasts=LASTING)
    name = stuck_readings.NAME
    busy = _working(utilization=1.0, processes=(), memory_used=0)
    yield _warns("work that nobody does", name, busy, lasts=LASTING)
    slow = _working(utilization=0.95, sm_clock=210e6, slowdown_reasons=0, processes=(Process(1, 0),), memory_used=0)
    yield _warns("a low clock under load", name, slow, lasts=LASTING)
    yield _warns("a NUMA node that nobody knows", numa_affinity.NAME, _held(numa_node=None))
    name = device_files.NAME
    yield _warns("a device file that is missing", name, _held(device=DeviceFile()))
    yield _warns("a device file that is a file", name, _held(device=DeviceFile("-", 0o644)))
    yield _warns("a device file of another GPU", name, _held(device=DeviceFile("c", 0o666, 0, 0, 195, SLOT + 1)))
    yield _warns("a device file that is closed", name, _held(device=DeviceFile("c", 0o600, 0, 0, 195, SLOT)))


CATALOGUE: tuple[Fault, ...] = (*_memory(), *_board(), *_links(), *_wishes(), *_senseless())
