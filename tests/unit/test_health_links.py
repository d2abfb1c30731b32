"""The checks of a GPU's links: to the host, to other GPUs, to the fabric."""

from __future__ import annotations

import pytest

from nodeagent.config.model import Health
from nodeagent.config.thresholds import Nvlink, Pcie
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from tests.unit.test_health_facts import Cycles, bus, gpu

PLACE = f"GPU 0 {bus(0)}"
WELL = {
    "pcie_width": 16,
    "pcie_width_max": 16,
    "pcie_generation": 5,
    "pcie_generation_max": 5,
    "pcie_replays": 100,
    "performance_state": 0,
    "utilization": 0.5,
    "nvlink_total": 18,
    "nvlink_active": 18,
    "nvlink_errors": 100,
    "nvlink_recoveries": 2,
    "fabric_state": 3,
    "fabric_status": 0,
}
A_MINUTE = 7
"""Readings ten seconds apart, from the first to the one after a minute."""


def see(cycles: Cycles, readings: int = 1, **values: object) -> list[str]:
    """Judge so many readings of a GPU with these values beside a well one; return the states that came."""
    states = []
    for _ in range(readings):
        cycles.see(gpu(0, **{**WELL, **values}), gpu(1, **WELL))
        assert cycles.state(1) == "OK"
        states.append(cycles.state(0))
    return states


def only(cycles: Cycles) -> Finding:
    (reason,) = cycles.unit(0).reasons
    return reason


@pytest.mark.parametrize(
    ("value", "evidence"),
    [
        ({"pcie_width": 8}, f"PCIe link of {PLACE} is below 16 lanes (now 8)"),
        ({"pcie_generation": 4}, f"PCIe link of {PLACE} is below generation 5 (now 4)"),
        ({"pcie_generation": 4, "utilization": None}, f"PCIe link of {PLACE} is below generation 5 (now 4)"),
        ({"pcie_generation": 4, "performance_state": 2}, f"PCIe link of {PLACE} is below generation 5 (now 4)"),
    ],
)
def test_a_poor_link_to_the_host_counts_after_a_minute_and_passes(value: dict[str, object], evidence: str) -> None:
    cycles = Cycles()
    assert see(cycles, A_MINUTE) == ["OK"] * A_MINUTE
    assert see(cycles, 5, **value) == ["OK"] * 4 + ["DEGRADED"], "0.6 of a minute"
    reason = only(cycles)
    assert (reason.check, reason.severity, reason.action) == (
        *("pcie-link", Severity.WARNING, RecoveryAction.INSPECT_HARDWARE),
    )
    assert reason.evidence == evidence
    assert see(cycles, 70)[-1] == "OK"


@pytest.mark.parametrize(
    "value",
    [
        {"pcie_generation": 1, "utilization": 0.0, "performance_state": 8},
        {"pcie_generation": 1, "utilization": None, "performance_state": None},
        {"pcie_width": None, "pcie_generation": None},
        {"pcie_width": 8, "pcie_width_max": None},
        {"pcie_generation": 4, "pcie_generation_max": None},
        {"pcie_width": 8, "pcie_width_max": 8},
    ],
)
def test_an_idle_link_and_an_unknown_one_are_not_judged(value: dict[str, object]) -> None:
    assert set(see(Cycles(), 30, **value)) == {"OK"}


def test_a_poor_generation_under_load_stands_while_the_gpu_is_idle() -> None:
    cycles = Cycles()
    see(cycles, A_MINUTE, pcie_generation=3)
    assert set(see(cycles, 100, pcie_generation=1, utilization=0.0, performance_state=8)) == {"DEGRADED"}


def test_the_sites_word_on_the_link() -> None:
    settings = Health(pcie=Pcie(width=8, generation=4))
    assert set(see(Cycles(settings), 30, pcie_width=8, pcie_generation=4)) == {"OK"}
    assert see(Cycles(settings), A_MINUTE, pcie_width=4)[-1] == "DEGRADED"
    assert see(Cycles(settings), A_MINUTE, pcie_generation=3)[-1] == "DEGRADED"


def test_replays_count_by_their_rate() -> None:
    cycles = Cycles()
    see(cycles)
    assert see(cycles, 2, pcie_replays=180) == ["OK", "OK"], "8 a minute for ten minutes"
    assert see(cycles, 1, pcie_replays=181) == ["DEGRADED"]
    reason = only(cycles)
    assert (reason.check, reason.action) == ("pcie-replays", RecoveryAction.INSPECT_HARDWARE)
    assert reason.evidence == f"81 PCIe replays in 10 minutes on {PLACE}"
    assert see(cycles, 70, pcie_replays=181)[-1] == "OK"
    assert set(see(cycles, 3, pcie_replays=0)) == {"OK"}, "a counter that starts anew"
    assert see(Cycles(Health(pcie=Pcie(replays_per_minute=0))), 2, pcie_replays=None) == ["OK", "OK"]


def test_a_link_that_was_up_and_is_down_fails_the_gpu() -> None:
    cycles = Cycles()
    see(cycles, 2)
    assert see(cycles, 5, nvlink_active=17) == ["OK"] * 4 + ["FAILED"]
    reason = only(cycles)
    assert (reason.check, reason.severity, reason.action) == ("nvlink-down", Severity.ERROR, RecoveryAction.RESET_GPU)
    assert reason.evidence == f"17 of 18 NVLinks of {PLACE} are up"
    assert see(cycles, 3)[-1] == "OK"


def test_a_link_that_is_down_for_a_neighbours_reset_is_no_fault() -> None:
    cycles = Cycles()
    see(cycles, 20)
    assert set([*see(cycles, 3, nvlink_active=17), *see(cycles, 60)]) == {"OK"}


@pytest.mark.parametrize(
    ("value", "beside", "state"),
    [
        ({"nvlink_active": 12}, 18, "DEGRADED"),
        ({"nvlink_active": 12}, 12, "DEGRADED"),
        ({"nvlink_active": 12, "fabric_state": 2}, 12, "UNKNOWN"),
        ({"nvlink_active": 12, "fabric_state": 0}, 18, "DEGRADED"),
        ({"nvlink_active": 12, "fabric_state": 0}, 12, "OK"),
        ({"nvlink_active": 12, "fabric_state": None}, 12, "OK"),
        ({"nvlink_active": 0, "fabric_state": 0}, 18, "OK"),
        ({"nvlink_active": 12, "fabric_state": 0, "name": "another model"}, 18, "OK"),
        ({"nvlink_active": 12, "nvlink_total": 12}, 18, "OK"),
        ({"nvlink_active": 0, "nvlink_total": None}, 18, "OK"),
        ({"nvlink_active": 12, "mig_enabled": True}, 18, "OK"),
        ({"nvlink_active": None}, 18, "OK"),
    ],
)
def test_links_that_were_never_up(value: dict[str, object], beside: int, state: str) -> None:
    cycles = Cycles()
    for _ in range(A_MINUTE):
        other = {**WELL, "nvlink_active": beside, "fabric_state": 0}
        cycles.see(gpu(0, **{**WELL, **value}), gpu(1, **other))
    assert cycles.state(0) == state


def test_links_after_a_driver_reload_are_compared_with_those_since() -> None:
    cycles = Cycles()
    for _ in range(3):
        cycles.see(gpu(0, nvlink_total=4, nvlink_active=4, energy=900.0))
    for energy in range(20):
        cycles.see(gpu(0, nvlink_total=4, nvlink_active=2, energy=float(energy)))
    assert cycles.state(0) == "OK"


def test_the_links_that_a_site_expects() -> None:
    cycles = Cycles(Health(nvlink=Nvlink(links=4)))
    for _ in range(A_MINUTE):
        cycles.see(gpu(0, nvlink_total=4, nvlink_active=0), gpu(1, nvlink_total=4, nvlink_active=4))
    assert cycles.states() == ["DEGRADED", "OK"]


def test_a_mig_mode_that_takes_the_links_down_is_no_fault() -> None:
    cycles = Cycles()
    see(cycles, 3)
    assert set(see(cycles, 30, nvlink_active=0, mig_enabled=True)) == {"OK"}


def test_links_that_were_down_before_the_mig_mode_are_not_held_against_it() -> None:
    cycles = Cycles()
    see(cycles, 2)
    assert see(cycles, 5, nvlink_active=17)[-1] == "FAILED"
    assert see(cycles, 3, nvlink_active=0, mig_enabled=True)[-1] == "OK"


def test_errors_on_links_count_by_their_rate() -> None:
    cycles = Cycles()
    see(cycles)
    assert see(cycles, 1, nvlink_errors=60_100) == ["OK"], "100 a second for ten minutes"
    assert see(cycles, 1, nvlink_errors=60_101) == ["DEGRADED"]
    assert only(cycles).evidence == f"100 NVLink errors a second on {PLACE}"
    assert see(cycles, 70, nvlink_errors=60_101)[-1] == "OK"


def test_one_recovery_within_an_hour() -> None:
    cycles = Cycles()
    see(cycles)
    assert see(cycles, 1, nvlink_recoveries=3) == ["DEGRADED"]
    reason = only(cycles)
    assert (reason.check, reason.severity, reason.action) == (
        *("nvlink-errors", Severity.WARNING, RecoveryAction.RESET_GPU),
    )
    assert reason.evidence == f"1 NVLink recoveries within an hour on {PLACE}"
    cycles.now += 3590
    assert see(cycles, 4, nvlink_recoveries=3)[-1] == "OK"
    assert see(Cycles(Health(nvlink=Nvlink(recoveries_per_hour=5))), 2, nvlink_recoveries=7) == ["OK", "OK"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"fabric_state": 1}, "is not started"),
        ({"fabric_state": 2}, "is in progress"),
        ({"fabric_status": 999}, "ended with error 999"),
    ],
)
def test_a_gpu_out_of_its_fabric_is_unknown_and_then_failed(value: dict[str, object], words: str) -> None:
    cycles = Cycles()
    states = see(cycles, 38, **value)
    assert (states[0], set(states[:36]), states[-1]) == ("UNKNOWN", {"UNKNOWN"}, "FAILED")
    reason = only(cycles)
    assert (reason.check, reason.severity, reason.action) == (
        *("fabric-state", Severity.ERROR, RecoveryAction.REBOOT_NODE),
    )
    assert f"registration of {PLACE} with the NVLink fabric {words}" in reason.evidence
    assert see(cycles, 3)[-1] == "OK"


def test_a_fabric_that_comes_up_after_a_boot_fails_nothing() -> None:
    cycles = Cycles()
    assert set(see(cycles, 30, fabric_state=2)) == {"UNKNOWN"}
    assert see(cycles, 3) == ["UNKNOWN", "UNKNOWN", "OK"]


@pytest.mark.parametrize(
    "value", [{"fabric_state": 0}, {"fabric_state": None}, {"fabric_state": 1, "mig_enabled": True}]
)
def test_a_gpu_in_no_fabric_is_not_judged(value: dict[str, object]) -> None:
    assert set(see(Cycles(), 60, **value)) == {"OK"}
