"""The checks of readings that make no sense together: memory without a process, load, clock, NUMA node."""

from __future__ import annotations

import pytest

from nodeagent.config.model import Health
from nodeagent.config.thresholds import Stuck
from nodeagent.gpu.facts import Process
from nodeagent.health.finding import RecoveryAction, Severity
from tests.unit.test_health_facts import Cycles, bus, gpu, lost

PLACE = f"GPU 0 {bus(0)}"
MIB = 1 << 20
BUSY = {
    "memory_used": 70_000 * MIB,
    "processes": (Process(42, 1),),
    "processes_known": True,
    "utilization": 1.0,
    "sm_clock": 990e6,
    "sm_clock_max": 1980e6,
    "slowdown_reasons": 0x0,
}
IDLE = {**BUSY, "memory_used": 512 * MIB, "processes": (), "utilization": 0.0, "sm_clock": 345e6, "slowdown_reasons": 1}


def see(cycles: Cycles, readings: int, base: dict[str, object], **values: object) -> list[str]:
    """Judge so many readings of a GPU with these values beside a busy and an idle one; return the states."""
    states = []
    for _ in range(readings):
        cycles.see(gpu(0, **{**base, **values}), gpu(1, **BUSY), gpu(2, **IDLE))
        assert (cycles.state(1), cycles.state(2)) == ("OK", "OK")
        states.append(cycles.state(0))
    return states


@pytest.mark.parametrize(
    ("base", "value", "check", "evidence"),
    [
        (
            *(IDLE, {"memory_used": 513 * MIB}, "memory-held"),
            f"memory of {PLACE} was in use without a process for 6 of the last 6 minutes (now: 513 MiB)",
        ),
        (
            *(IDLE, {"utilization": 0.99}, "stuck-readings"),
            f"{PLACE} says that it works at full load, without a process, for 6 of the last 6 minutes",
        ),
        (
            *(BUSY, {"sm_clock": 989e6, "utilization": 0.9}, "stuck-readings"),
            f"{PLACE} worked at a low clock, for no reason that it names, for 6 of the last 6 minutes",
        ),
    ],
)
def test_a_reading_that_makes_no_sense_for_six_minutes(
    base: dict[str, object], value: dict[str, object], check: str, evidence: str
) -> None:
    cycles = Cycles()
    see(cycles, 2, BUSY, sm_clock=1980e6)
    assert set(see(cycles, 36, base, **value)) == {"OK"}
    assert see(cycles, 1, base, **value) == ["DEGRADED"]
    found = [reason for reason in cycles.unit(0).reasons if reason.check == check]
    assert [(one.severity, one.action, one.evidence) for one in found] == [
        (Severity.WARNING, RecoveryAction.RESET_GPU, evidence)
    ]
    assert len(cycles.unit(0).reasons) == 1
    assert see(cycles, 70, IDLE)[-1] == "OK"


@pytest.mark.parametrize(
    ("base", "value"),
    [
        (IDLE, {"memory_used": None}),
        (IDLE, {"memory_used": 600 * MIB, "processes_known": None}),
        (IDLE, {"memory_used": 600 * MIB, "mig_enabled": True}),
        (IDLE, {"memory_used": 600 * MIB, "processes": (Process(7),)}),
        (IDLE, {"utilization": 0.98}),
        (IDLE, {"utilization": 1.0, "processes_known": None, "sm_clock": 1980e6}),
        (BUSY, {"sm_clock": 300e6, "slowdown_reasons": 0x4}),
        (BUSY, {"sm_clock": 300e6, "slowdown_reasons": 0x2}),
        (BUSY, {"sm_clock": 300e6, "slowdown_reasons": None}),
        (BUSY, {"sm_clock": 300e6, "sm_clock_max": None}),
        (BUSY, {"sm_clock": None}),
        (BUSY, {"sm_clock": 300e6, "utilization": 0.89}),
        (BUSY, {"sm_clock": 300e6, "utilization": None}),
    ],
)
def test_what_is_explained_or_not_known_is_no_finding(base: dict[str, object], value: dict[str, object]) -> None:
    assert set(see(Cycles(), 60, base, **value)) == {"OK"}


def test_memory_that_was_held_before_the_mig_mode_is_not_held_against_it() -> None:
    cycles = Cycles()
    assert see(cycles, 60, IDLE, memory_used=600 * MIB)[-1] == "DEGRADED"
    assert see(cycles, 3, IDLE, memory_used=600 * MIB, mig_enabled=True)[-1] == "OK"


def test_memory_between_two_jobs_is_no_finding() -> None:
    cycles = Cycles()
    for _ in range(20):
        states = [*see(cycles, 4, BUSY, sm_clock=1980e6), *see(cycles, 2, IDLE, memory_used=60_000 * MIB)]
        assert set(states) == {"OK"}


def test_the_sites_limits() -> None:
    cycles = Cycles(Health(stuck=Stuck(held_memory=600 * MIB, clock=0.1)))
    assert set(see(cycles, 60, IDLE, memory_used=600 * MIB)) == {"OK"}
    assert set(see(Cycles(cycles.settings), 60, BUSY, sm_clock=199e6)) == {"OK"}
    assert see(Cycles(cycles.settings), 60, BUSY, sm_clock=197e6)[-1] == "DEGRADED"


def test_a_gpu_without_a_numa_node_among_others_that_have_one() -> None:
    cycles = Cycles()
    cycles.see(gpu(0, numa_node=None), gpu(1))
    assert cycles.states() == ["DEGRADED", "OK"]
    (reason,) = cycles.unit(0).reasons
    assert (reason.check, reason.severity, reason.action) == ("numa-affinity", Severity.WARNING, RecoveryAction.NONE)
    assert reason.evidence == f"NUMA node of {PLACE} is unknown"
    for _ in range(3):
        cycles.see(gpu(0), gpu(1))
    assert cycles.states() == ["OK", "OK"]


def test_numa_nodes_that_nobody_knows_and_those_of_lost_gpus_are_no_finding() -> None:
    cycles = Cycles()
    cycles.see(gpu(0, numa_node=None), gpu(1, numa_node=None))
    assert cycles.states() == ["OK", "OK"]
    cycles = Cycles()
    cycles.see(gpu(0), lost(1))
    assert [reason.check for reason in cycles.unit(1).reasons] == ["gpu-lost"]
