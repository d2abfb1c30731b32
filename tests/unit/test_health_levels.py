"""Checks of what has to last, without the time: what one reading is taken for, what a window is judged by."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.config.model import Health
from nodeagent.config.thresholds import Nvlink, Pcie, Stuck, Temperature
from nodeagent.gpu.facts import Process
from nodeagent.health.checks import CHECKS, SERIES
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.memory import Memory, UnitMemory
from nodeagent.health.scene import observe
from nodeagent.health.series import Sight
from nodeagent.health.window import HOUR, Window
from tests.unit.test_health_facts import BOOT, bus, gpu, node, uuid

SITE = Health(
    temperature=Temperature(margin=10.0, memory_margin=5.0, fallback=60.0),
    pcie=Pcie(width=8, generation=3),
    nvlink=Nvlink(links=4, errors_per_second=1, recoveries_per_hour=2),
    stuck=Stuck(held_memory=1000, clock=0.1),
)
PLACE = f"GPU 0 {bus(0)}"
PROCESS = (Process(42, 1),)
BUSY = {"utilization": 0.9, "processes": PROCESS, "processes_known": True, "sm_clock_max": 1000.0, "sm_clock": 499.0}
CLOCK = {**BUSY, "slowdown_reasons": 0}
HELD = {"processes_known": True, "memory_used": (512 << 20) + 1}
LINKS = {"nvlink_total": 18, "nvlink_active": 18}


def level(name: str, values: dict[str, Any], settings: Health, window: Window | None = None) -> float | None:
    """Return what a reading of GPU 0 is taken for, beside a GPU 1 with all links up that had 18 before."""
    facts = node(gpu(0, **values), gpu(1, **LINKS))
    scene = observe(Memory(BOOT), facts, settings)
    return SERIES[name].read(Sight(facts.gpus[0], scene.units[uuid(0)], scene, settings, window))


@pytest.mark.parametrize(
    ("name", "values", "default", "site"),
    [
        ("temperature", {"temperature_margin": 0.0, "temperature": 10.0}, 1, 1),
        ("temperature", {"temperature_margin": 0.5, "temperature": 99.0}, 0, 1),
        ("temperature", {"temperature_margin": 10.5}, 0, 0),
        ("temperature", {"temperature": 89.0, "slowdown_temperature": 89.0}, 1, 1),
        ("temperature", {"temperature": 88.5, "slowdown_temperature": 89.0}, 0, 1),
        ("temperature", {"temperature": 78.5, "slowdown_temperature": 89.0}, 0, 0),
        ("temperature", {"temperature": 93.0, "slowdown_temperature": 0.0}, 1, 1),
        ("temperature", {"temperature": 92.5}, 0, 1),
        ("temperature", {"temperature": 60.0}, 0, 1),
        ("temperature", {"temperature": 59.5}, 0, 0),
        ("temperature", {}, None, None),
        ("temperature:memory", {"memory_temperature": 95.0, "memory_max_temperature": 95.0}, 1, 1),
        ("temperature:memory", {"memory_temperature": 94.5, "memory_max_temperature": 95.0}, 0, 1),
        ("temperature:memory", {"memory_temperature": 89.5, "memory_max_temperature": 95.0}, 0, 0),
        ("temperature:memory", {"memory_temperature": 99.0, "memory_max_temperature": 0.0}, None, None),
        ("temperature:memory", {"memory_temperature": 99.0}, None, None),
        ("temperature:memory", {"memory_max_temperature": 95.0}, None, None),
        ("power-readout", {"power": 0.0}, 1, 1),
        ("power-readout", {"power": 0.5, "power_limit": 700.0}, 0, 0),
        ("power-readout", {"power": 1400.0, "power_limit": 700.0}, 0, 0),
        ("power-readout", {"power": 1400.5, "power_limit": 700.0}, 1, 1),
        ("power-readout", {"power": 1400.5, "power_limit": 0.0}, 0, 0),
        ("power-readout", {"power": 1400.5}, 0, 0),
        ("power-readout", {"temperature": 30.0}, None, None),
        ("hardware-slowdown", {"slowdown_reasons": 0x8}, 1, 1),
        ("hardware-slowdown", {"slowdown_reasons": 0x48}, 0, 0),
        ("hardware-slowdown", {"slowdown_reasons": 0x88}, 0, 0),
        ("hardware-slowdown", {"slowdown_reasons": 0x24}, 0, 0),
        ("hardware-slowdown", {}, None, None),
        ("hardware-slowdown:thermal", {"slowdown_reasons": 0x4C}, 1, 1),
        ("hardware-slowdown:thermal", {"slowdown_reasons": 0xA8}, 0, 0),
        ("hardware-slowdown:power-brake", {"slowdown_reasons": 0x8C}, 1, 1),
        ("hardware-slowdown:power-brake", {"slowdown_reasons": 0x6C}, 0, 0),
        ("pcie-link:width", {"pcie_width": 8, "pcie_width_max": 16}, 1, 0),
        ("pcie-link:width", {"pcie_width": 16, "pcie_width_max": 16}, 0, 0),
        ("pcie-link:width", {"pcie_width": 4}, None, 1),
        ("pcie-link:width", {"pcie_width_max": 16}, None, None),
        ("pcie-link:generation", {"pcie_generation": 3, "pcie_generation_max": 4, "performance_state": 0}, 1, 0),
        ("pcie-link:generation", {"pcie_generation": 3, "pcie_generation_max": 4, "utilization": 0.1}, 1, 0),
        ("pcie-link:generation", {"pcie_generation": 2, "performance_state": 0}, None, 1),
        ("pcie-link:generation", {"pcie_generation": 1, "pcie_generation_max": 4, "performance_state": 1}, None, None),
        ("pcie-link:generation", {"pcie_generation": 1, "pcie_generation_max": 4, "utilization": 0.0}, None, None),
        ("nvlink-down", {**LINKS, "nvlink_active": 17}, 1, 1),
        ("nvlink-down", LINKS, 0, 0),
        ("nvlink-down", {**LINKS, "nvlink_active": 0}, 0, 1),
        ("nvlink-down", {**LINKS, "nvlink_active": 0, "fabric_state": 3}, 1, 1),
        ("nvlink-down", {"nvlink_total": 12, "nvlink_active": 3}, 0, 1),
        ("nvlink-down", {**LINKS, "nvlink_active": 4, "name": "other"}, 0, 0),
        ("nvlink-down", {**LINKS, "nvlink_active": 0, "mig_enabled": True}, None, None),
        ("nvlink-down", {}, None, None),
        ("fabric-state", {"fabric_state": 1}, 1, 1),
        ("fabric-state", {"fabric_state": 2}, 1, 1),
        ("fabric-state", {"fabric_state": 3, "fabric_status": 0}, 0, 0),
        ("fabric-state", {"fabric_state": 3}, 0, 0),
        ("fabric-state", {"fabric_state": 3, "fabric_status": 5}, 1, 1),
        ("fabric-state", {"fabric_state": 0}, None, None),
        ("fabric-state", {"fabric_state": 1, "mig_enabled": True}, None, None),
        ("fabric-state", {}, None, None),
        ("memory-held", HELD, 1, 1),
        ("memory-held", {**HELD, "memory_used": 512 << 20}, 0, 1),
        ("memory-held", {**HELD, "memory_used": 1000}, 0, 0),
        ("memory-held", {**HELD, "processes": PROCESS}, 0, 0),
        ("memory-held", {**HELD, "processes_known": None}, None, None),
        ("memory-held", {**HELD, "mig_enabled": True}, None, None),
        ("memory-held", {**HELD, "memory_used": None}, None, None),
        ("stuck-readings", {"utilization": 0.99, "processes_known": True}, 1, 1),
        ("stuck-readings", {"utilization": 0.98, "processes_known": True}, 0, 0),
        ("stuck-readings", {"utilization": 1.0, "processes_known": True, "processes": PROCESS}, 0, 0),
        ("stuck-readings", {"utilization": 1.0}, None, None),
        ("stuck-readings", {"processes_known": True}, None, None),
        ("stuck-readings:clock", CLOCK, 1, 0),
        ("stuck-readings:clock", {**CLOCK, "sm_clock": 99.0}, 1, 1),
        ("stuck-readings:clock", {**CLOCK, "sm_clock": 500.0}, 0, 0),
        ("stuck-readings:clock", {**CLOCK, "utilization": 0.89}, 0, 0),
        ("stuck-readings:clock", {**CLOCK, "slowdown_reasons": 1}, 1, 0),
        ("stuck-readings:clock", {**CLOCK, "slowdown_reasons": 5}, 0, 0),
        ("stuck-readings:clock", {**CLOCK, "processes": ()}, 0, 0),
        ("stuck-readings:clock", {**CLOCK, "processes": (), "processes_known": None}, 1, 0),
        ("stuck-readings:clock", {**CLOCK, "utilization": None}, None, None),
        ("stuck-readings:clock", {**CLOCK, "sm_clock": None}, None, None),
        ("stuck-readings:clock", {**CLOCK, "sm_clock_max": 0.0}, None, None),
        ("stuck-readings:clock", {**CLOCK, "slowdown_reasons": None}, None, None),
        ("ecc-corrected", {"ecc_corrected": 7}, 7, 7),
        ("pcie-replays", {"pcie_replays": 7}, 7, 7),
        ("nvlink-errors", {"nvlink_errors": 7, "nvlink_recoveries": 1}, 7, 7),
        ("nvlink-errors:recoveries", {"nvlink_errors": 7, "nvlink_recoveries": 1}, 1, 1),
    ],
)
def test_what_a_reading_is_taken_for(
    name: str, values: dict[str, Any], default: float | None, site: float | None
) -> None:
    assert (level(name, values, Health()), level(name, values, SITE)) == (default, site)


@pytest.mark.parametrize(
    ("values", "taken"),
    [
        ({"temperature": 30.0}, 1.0),
        ({"temperature": 0.0}, 1.0),
        ({}, None),
        ({"temperature": 30.0, "error": 15}, None),
        ({"temperature": 30.0, "power": 70.0}, 0.0),
    ],
)
def test_a_power_that_was_told_earlier_and_is_not_now(values: dict[str, Any], taken: float | None) -> None:
    assert level("power-readout", values, Health(), Window(0.0, 0.0)) == taken


def test_what_is_counted_and_for_how_long() -> None:
    hourly = {"ecc-corrected", "nvlink-errors:recoveries"}
    assert {name for name, one in SERIES.items() if one.counter} == {*hourly, "nvlink-errors", "pcie-replays"}
    assert {name: one.length(Health()) for name, one in SERIES.items()} == {
        name: HOUR if name in hourly else 600.0 for name in SERIES
    }


NOW = {"pcie_width": 8, "pcie_width_max": 16, "pcie_generation": 4, "pcie_generation_max": 5, "power": 5.5}
READ = {**NOW, "memory_used": 600 << 20, "nvlink_active": 17, "nvlink_total": 18, "fabric_state": 3, "fabric_status": 9}
WARN, ERROR = Severity.WARNING, Severity.ERROR
INSPECT, RESET, REBOOT = RecoveryAction.INSPECT_HARDWARE, RecoveryAction.RESET_GPU, RecoveryAction.REBOOT_NODE


def found(check: str, name: str, amount: float, seen: float, **values: Any) -> list[Finding]:
    """Return what a check makes of one window of GPU 0 and of these values."""
    windows = {name: Window(0.0, 0.0, ((0.0, seen, amount),))}
    memory = Memory(BOOT, units={uuid(0): UnitMemory(uuid(0), nvlinks=18, windows=windows)})
    return list(CHECKS[check](observe(memory, node(gpu(0, **{**READ, **values})), Health()), Health()))


LASTED = "6 of the last 10 minutes"
SLOWED = f"{PLACE} was slowed by its hardware"
SAID = {
    "temperature": (INSPECT, f"{PLACE} is too hot: at its limit for {LASTED}"),
    "temperature:memory": (INSPECT, f"{PLACE} has memory too hot: at its limit for {LASTED}"),
    "power-readout": (INSPECT, f"power of {PLACE} made no sense for {LASTED} (now: 5.5 W)"),
    "hardware-slowdown": (INSPECT, f"{SLOWED} for a reason that it does not name for {LASTED}"),
    "hardware-slowdown:thermal": (INSPECT, f"{SLOWED} against heat (cooling) for {LASTED}"),
    "hardware-slowdown:power-brake": (INSPECT, f"{SLOWED} by its power brake (power supply) for {LASTED}"),
    "memory-held": (RESET, f"memory of {PLACE} was in use without a process for {LASTED} (now: 600 MiB)"),
    "stuck-readings": (RESET, f"{PLACE} says that it works at full load, without a process, for {LASTED}"),
    "stuck-readings:clock": (RESET, f"{PLACE} worked at a low clock, for no reason that it names, for {LASTED}"),
}


@pytest.mark.parametrize(("name", "said"), list(SAID.items()))
def test_six_minutes_of_ten_are_a_warning_and_less_is_none(name: str, said: tuple[RecoveryAction, str]) -> None:
    check = name.partition(":")[0]
    action, evidence = said
    assert found(check, name, 360.0, 600.0) == [Finding(check, uuid(0), WARN, evidence, action)]
    assert found(check, name, 359.0, 600.0) == []


@pytest.mark.parametrize(
    ("name", "amount", "seen", "finding"),
    [
        ("pcie-link:width", 36.0, 60.0, (WARN, INSPECT, f"PCIe link of {PLACE} is below 16 lanes (now 8)")),
        ("pcie-link:generation", 36.0, 60.0, (WARN, INSPECT, f"PCIe link of {PLACE} is below generation 5 (now 4)")),
        ("pcie-link:width", 35.0, 60.0, None),
        ("nvlink-down", 36.0, 60.0, (ERROR, RESET, f"17 of 18 NVLinks of {PLACE} are up")),
        ("nvlink-down", 35.0, 60.0, None),
        ("pcie-replays", 81.0, 1.0, (WARN, INSPECT, f"81 PCIe replays in 10 minutes on {PLACE}")),
        ("pcie-replays", 80.0, 1.0, None),
        ("nvlink-errors", 60_600.0, 1.0, (WARN, RESET, f"101 NVLink errors a second on {PLACE}")),
        ("nvlink-errors", 60_000.0, 1.0, None),
        ("nvlink-errors:recoveries", 1.0, 1.0, (WARN, RESET, f"1 NVLink recoveries within an hour on {PLACE}")),
        ("nvlink-errors:recoveries", 0.0, 1.0, None),
        (
            *("ecc-corrected", 10_000_001.0, 1.0),
            (WARN, INSPECT, f"10000001 corrected ECC errors within an hour on {PLACE}"),
        ),
        ("ecc-corrected", 10_000_000.0, 1.0, None),
    ],
)
def test_what_is_judged_by_another_measure(
    name: str, amount: float, seen: float, finding: tuple[Severity, RecoveryAction, str] | None
) -> None:
    check = name.partition(":")[0]
    expected = [] if finding is None else [Finding(check, uuid(0), finding[0], finding[2], finding[1])]
    assert found(check, name, amount, seen) == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fabric_state": 1}, "is not started"),
        ({"fabric_state": 2}, "is in progress"),
        ({}, "ended with error 9"),
    ],
)
def test_a_gpu_out_of_its_fabric_is_a_doubt_for_six_minutes(values: dict[str, Any], words: str) -> None:
    said = f"registration of {PLACE} with the NVLink fabric {words} (is the fabric manager running?)"
    doubt = [Finding("fabric-state", uuid(0), Severity.UNKNOWN, said)]
    assert found("fabric-state", "fabric-state", 359.0, 600.0, **values) == doubt
    assert found("fabric-state", "another", 600.0, 600.0, **values) == doubt
    assert found("fabric-state", "fabric-state", 360.0, 600.0, **values) == [
        Finding("fabric-state", uuid(0), ERROR, said, REBOOT)
    ]


def test_what_is_not_known_now_is_said_to_be_so() -> None:
    [power] = found("power-readout", "power-readout", 360.0, 600.0, power=None)
    assert power.evidence.endswith("(now: no value)")
    [memory] = found("memory-held", "memory-held", 360.0, 600.0, memory_used=None)
    assert memory.evidence.endswith("(now: unknown)")
