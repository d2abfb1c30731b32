"""The checks of states that have to last: slowdown by hardware, temperature, power."""

from __future__ import annotations

import pytest

from nodeagent.config.model import Health
from nodeagent.config.thresholds import Sustained, Temperature
from nodeagent.health.finding import RecoveryAction, Severity
from tests.unit.test_health_facts import Cycles, bus, gpu, lost

PLACE = f"GPU 0 {bus(0)}"
WELL = {
    "slowdown_reasons": 0x1,
    "temperature": 88.0,
    "slowdown_temperature": 89.0,
    "memory_temperature": 94.0,
    "memory_max_temperature": 95.0,
    "power": 1400.0,
    "power_limit": 700.0,
}
SIX_MINUTES = 37
"""Readings ten seconds apart, from the first to the one after six minutes."""


def states(cycles: Cycles, readings: int, beside: dict[str, object] = WELL, **values: object) -> list[str]:
    """Judge so many readings of a GPU with these values beside a well one; return the states that came."""
    seen = []
    for _ in range(readings):
        cycles.see(gpu(0, **{**WELL, **values}), gpu(1, **beside))
        assert cycles.state(1) == "OK"
        seen.append(cycles.state(0))
    return seen


@pytest.mark.parametrize(
    ("value", "check", "evidence"),
    [
        (
            {"slowdown_reasons": 0x48},
            *("hardware-slowdown", "was slowed by its hardware against heat (cooling) for 6 of the last 6 minutes"),
        ),
        (
            {"slowdown_reasons": 0x89},
            "hardware-slowdown",
            "was slowed by its hardware by its power brake (power supply) for 6 of the last 6 minutes",
        ),
        (
            {"slowdown_reasons": 0x8},
            "hardware-slowdown",
            "was slowed by its hardware for a reason that it does not name for 6 of the last 6 minutes",
        ),
        ({"temperature": 89.0}, "temperature", "is too hot: at its limit for 6 of the last 6 minutes"),
        ({"temperature_margin": 0.0}, "temperature", "is too hot: at its limit for 6 of the last 6 minutes"),
        ({"memory_temperature": 95.0}, "temperature", "has memory too hot: at its limit for 6 of the last 6 minutes"),
        ({"power": 0.0}, "power-readout", "made no sense for 6 of the last 6 minutes (now: 0 W)"),
        ({"power": 1400.1}, "power-readout", "made no sense for 6 of the last 6 minutes (now: 1400.1 W)"),
        ({"power": None}, "power-readout", "made no sense for 6 of the last 6 minutes (now: no value)"),
    ],
)
def test_a_state_counts_after_six_minutes_of_ten_and_passes(
    value: dict[str, object], check: str, evidence: str
) -> None:
    cycles = Cycles()
    states(cycles, 2)
    assert set(states(cycles, SIX_MINUTES - 1, **value)) == {"OK"}
    assert states(cycles, 1, **value) == ["DEGRADED"]
    (reason,) = cycles.unit(0).reasons
    assert (reason.check, reason.severity, reason.action) == (check, Severity.WARNING, RecoveryAction.INSPECT_HARDWARE)
    assert PLACE in reason.evidence and reason.evidence.endswith(evidence)
    assert states(cycles, 70)[-1] == "OK"


@pytest.mark.parametrize(
    "value",
    [
        {"slowdown_reasons": 0x4 | 0x20},
        {"slowdown_reasons": 0x3 | 0x10 | 0x100},
        {"slowdown_reasons": None},
        {"temperature": None},
        {"temperature": 120.0, "temperature_margin": 0.1},
        {"temperature": 92.9, "slowdown_temperature": None},
        {"temperature": 92.9, "slowdown_temperature": 0},
        {"memory_temperature": 120.0, "memory_max_temperature": None},
        {"power": 2000.0, "power_limit": None},
        {"power": 0.1},
    ],
)
def test_what_is_usual_or_not_known_is_no_finding(value: dict[str, object]) -> None:
    assert set(states(Cycles(), 80, **value)) == {"OK"}


def test_a_gpu_that_never_told_its_power_is_not_held_to_it() -> None:
    assert set(states(Cycles(), 80, power=None)) == {"OK"}


def test_power_of_a_gpu_that_tells_nothing_at_all_is_another_checks() -> None:
    cycles = Cycles()
    states(cycles, 2)
    assert set(states(cycles, 80, power=None, temperature=None)) == {"OK"}
    for _ in range(60):
        cycles.see(lost(0))
    assert [reason.check for reason in cycles.unit(0).reasons] == ["gpu-lost"]


def test_bumps_are_no_slowdown() -> None:
    cycles = Cycles()
    for _ in range(30):
        assert {*states(cycles, 5, slowdown_reasons=0x48), *states(cycles, 5)} == {"OK"}, "half of the time"


def test_two_reasons_are_two_findings() -> None:
    cycles = Cycles()
    states(cycles, 40, slowdown_reasons=0xC8)
    assert len(cycles.unit(0).reasons) == 2


def test_what_stood_stays_while_nothing_is_known_of_it() -> None:
    cycles = Cycles()
    states(cycles, 40, slowdown_reasons=0x40)
    assert set(states(cycles, 100, slowdown_reasons=None)) == {"DEGRADED"}


def test_the_sites_window_share_and_margin() -> None:
    cycles = Cycles(Health(sustained=Sustained(window=60.0, share=0.5), temperature=Temperature(margin=10.0)))
    assert states(cycles, 4, {}, temperature=79.0) == ["OK"] * 3 + ["DEGRADED"]
    assert set(states(Cycles(cycles.settings), 9, {}, temperature=78.9)) == {"OK"}
    assert states(Cycles(cycles.settings), 9, {}, temperature_margin=10.0)[-1] == "DEGRADED"
    cycles = Cycles(Health(sustained=Sustained(window=60.0), temperature=Temperature(memory_margin=5.0, fallback=60.0)))
    assert states(cycles, 9, {}, memory_temperature=90.0)[-1] == "DEGRADED"
    cycles = Cycles(cycles.settings)
    assert states(cycles, 9, {}, temperature=60.0, slowdown_temperature=None, memory_temperature=0.0)[-1] == "DEGRADED"
