"""The NVML calls that a sweep is made of: each answers with a code that is known, reads and changes nothing."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from typing import Any

import pytest

from tests.hardware.place import Place, ask

Calls = list[tuple[str, int, float]]

SWEEPS = 5
LAST_CODE = 29
"""nvmlReturn_t runs from 0 to this without a gap, and has UNKNOWN beside."""
UNKNOWN = 999
READING = ("nvmlInit", "nvmlDeviceGet", "nvmlSystemGet", "nvmlEventSet", "nvmlDeviceRegisterEvents")


@pytest.fixture(scope="module")
def sweeps(here: Place, facts: dict[str, Any]) -> list[Calls]:
    """The calls of some sweeps: (name, code, seconds)."""
    found: list[Calls] = ask("sweeps", here.roots.proc, here.roots.sys, str(SWEEPS))
    times: dict[str, list[float]] = defaultdict(list)
    for name, _, seconds in (call for sweep in found[1:] for call in sweep):
        times[name].append(seconds * 1e6)
    facts["calls_us"] = {
        name: {"median": round(statistics.median(took), 1), "worst": round(max(took), 1), "n": len(took)}
        for name, took in sorted(times.items())
    }
    facts["calls_a_sweep"] = len(found[-1])
    facts["calls_a_sweep_ms"] = round(
        statistics.median(sum(call[2] for call in sweep) for sweep in found[1:]) * 1000, 3
    )
    facts["first_calls_ms"] = round(sum(call[2] for call in found[0]) * 1000, 3)
    codes = Counter((name, code) for sweep in found for name, code, _ in sweep if code)
    facts["codes"] = {f"{name} {code}": count for (name, code), count in sorted(codes.items())}
    return found


@pytest.mark.timeout(300)
def test_every_call_answers_with_a_known_code(sweeps: list[Calls]) -> None:
    codes = Counter((name, code) for sweep in sweeps for name, code, _ in sweep)
    assert {call: n for call, n in codes.items() if not (0 <= call[1] <= LAST_CODE or call[1] == UNKNOWN)} == {}


def test_unknown_errors_are_none(sweeps: list[Calls]) -> None:
    assert Counter(name for sweep in sweeps for name, code, _ in sweep if code == UNKNOWN) == {}


def test_a_sweep_only_reads(sweeps: list[Calls]) -> None:
    assert {name for sweep in sweeps for name, _, _ in sweep if not name.startswith(READING)} == set()
