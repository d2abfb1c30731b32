"""The checks of a GPU's memory: row remapping, retired pages, corrected errors, caches."""

from __future__ import annotations

import pytest

from nodeagent.config.model import Health
from nodeagent.config.thresholds import MemoryErrors
from nodeagent.health.finding import RecoveryAction, Severity
from tests.unit.test_health_facts import Cycles, bus, checks_of, gpu

INSPECT, RESET = RecoveryAction.INSPECT_HARDWARE, RecoveryAction.RESET_GPU
PLACE = f"GPU 0 {bus(0)}"
WELL = {
    "remapping_pending": False,
    "remapping_failed": False,
    "remap_banks_exhausted": 0,
    "retired_pages": 60,
    "retirement_pending": False,
    "ecc_corrected": 10**9,
    "ecc_corrected_total": 50_000_000,
    "sram_threshold_exceeded": False,
    "remapped_correctable": 3,
    "remapped_uncorrectable": 2,
}


@pytest.mark.parametrize(
    ("value", "check", "severity", "action", "evidence"),
    [
        (
            {"remapping_failed": True},
            *("row-remapping", Severity.ERROR, INSPECT, f"remapping of a memory row failed on {PLACE}"),
        ),
        (
            {"remapping_pending": True},
            *("row-remapping", Severity.WARNING, RESET, f"a memory row of {PLACE} is remapped at its next reset"),
        ),
        (
            {"remap_banks_exhausted": 2},
            *("row-remapping", Severity.WARNING, INSPECT, f"2 memory banks of {PLACE} have no spare row left"),
        ),
        (
            {"retirement_pending": True},
            *("retired-pages", Severity.ERROR, RESET, f"a bad memory page of {PLACE} is retired at its next reset"),
        ),
        (
            {"retired_pages": 61},
            *("retired-pages", Severity.ERROR, INSPECT, f"61 retired memory pages on {PLACE}, more than 60"),
        ),
        (
            {"ecc_corrected_total": 50_000_001},
            *("ecc-corrected", Severity.WARNING, INSPECT, f"50000001 corrected ECC errors in the life of {PLACE}"),
        ),
        (
            {"sram_threshold_exceeded": True},
            *("sram-errors", Severity.ERROR, INSPECT),
            f"uncorrectable errors in the caches of {PLACE} exceed NVIDIA's limit",
        ),
    ],
)
def test_one_bad_value_is_one_finding_and_goes_with_it(
    value: dict[str, object], check: str, severity: Severity, action: RecoveryAction, evidence: str
) -> None:
    cycles = Cycles()
    for _ in range(2):
        cycles.see(gpu(0, **WELL), gpu(1, **WELL))
        assert cycles.states() == ["OK", "OK"], "counts at their limits and remapped rows as such are well"
    cycles.see(gpu(0, **{**WELL, **value}), gpu(1, **WELL))
    assert cycles.states() == ["FAILED" if severity is Severity.ERROR else "DEGRADED", "OK"]
    (reason,) = cycles.unit(0).reasons
    assert (reason.check, reason.severity, reason.action, reason.evidence) == (check, severity, action, evidence)
    for _ in range(3):
        cycles.see(gpu(0, **WELL), gpu(1, **WELL))
    assert cycles.states() == ["OK", "OK"]


def test_values_that_are_not_known_are_not_judged() -> None:
    cycles = Cycles()
    cycles.see(gpu(0, **dict.fromkeys(WELL)))
    assert (cycles.state(0), cycles.unit(0).reasons) == ("OK", ())


def test_a_rate_of_corrected_errors_counts_within_an_hour_and_passes_with_it() -> None:
    cycles = Cycles(Health(memory_errors=MemoryErrors(corrected_per_hour=100)))
    cycles.see(gpu(0, ecc_corrected=7000))
    cycles.see(gpu(0, ecc_corrected=7100))
    assert cycles.state(0) == "OK"
    cycles.see(gpu(0, ecc_corrected=7101))
    (reason,) = cycles.unit(0).reasons
    assert (reason.severity, reason.action) == (Severity.WARNING, INSPECT)
    assert reason.evidence == f"101 corrected ECC errors within an hour on {PLACE}"
    cycles.now += 3590
    for _ in range(4):
        cycles.see(gpu(0, ecc_corrected=7101))
    assert cycles.state(0) == "OK"


def test_corrected_errors_of_before_a_restart_of_the_count_are_gone() -> None:
    cycles = Cycles(Health(memory_errors=MemoryErrors(corrected_per_hour=100)))
    for count in (0, 100, 0, 100):
        cycles.see(gpu(0, ecc_corrected=count))
        assert cycles.state(0) == "OK"


def test_the_sites_limits() -> None:
    cycles = Cycles(Health(memory_errors=MemoryErrors(corrected_total=5, retired_pages=1)))
    cycles.see(gpu(0, ecc_corrected_total=6, retired_pages=2))
    assert checks_of(cycles.unit(0).reasons) == ["retired-pages", "ecc-corrected"]
