"""What the judgement remembers: what a restore forgets, what explains a retirement, what a file may not hold."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from nodeagent.errors import UnknownFormat
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.memory import (
    EccWatch,
    Latch,
    Memory,
    Standing,
    UnitMemory,
    clear,
    explains,
    from_plain,
    to_plain,
)
from nodeagent.health.window import Window

FAULT = Finding("gpu-lost", "u", Severity.ERROR, "gone", RecoveryAction.REBOOT_NODE, 9.0)
LATCH = Latch(79, 5.0, "boot-a", 70.0, "MIG GI 1", 3)
IDENTITY = UnitMemory("u", 3, 4, "0000:1b:00.0", "NVIDIA H100", "S3", 1, "FAILED", 7.0, 80.0)
FULL = replace(
    IDENTITY,
    ecc=EccWatch(1, 4, 6.0, True),
    latches=(LATCH,),
    strikes={"gpu-lost": 2},
    rows={"gpu-lost": 5.0},
    stamps={"gpu-lost": (5.0, 6.0)},
    standing=(Standing((FAULT,), 2, 6.5),),
    windows={"temperature": Window(6.0, 1.0, ((5.0, 1.0, 0.5),))},
    nvlinks=18,
)


def remembered(unit: UnitMemory) -> Memory:
    return Memory("boot-a", units={"u": unit, "other": UnitMemory("other")}, kernel_sequence=17)


def plain(unit: UnitMemory = FULL) -> Any:
    return json.loads(json.dumps(to_plain(remembered(unit))))


def test_a_restore_forgets_all_that_is_held_against_the_gpu_and_keeps_who_it_is() -> None:
    cleared = clear(remembered(FULL), "u")
    assert cleared == remembered(IDENTITY)


def test_a_restore_forgets_a_gpu_that_is_gone_altogether() -> None:
    cleared = clear(remembered(replace(FULL, absent=True)), "u")
    assert cleared.units == {"other": UnitMemory("other")}


@pytest.mark.parametrize(
    ("held", "verdict"),
    [
        ({}, False),
        ({"latches": (LATCH,)}, True),
        ({"standing": FULL.standing}, True),
        ({"ecc": EccWatch(0, 0, 1.0)}, True),
        ({"strikes": {"gpu-lost": 1}}, False),
    ],
)
def test_what_is_held_against_a_gpu_explains_why_it_is_out(held: dict[str, Any], verdict: bool) -> None:
    memory = remembered(replace(IDENTITY, **held))
    assert explains(memory, "u") is verdict
    assert not explains(memory, "unknown")


def test_everything_that_is_remembered_survives_in_a_file() -> None:
    assert from_plain(plain()) == remembered(FULL)
    bare = Memory("boot-a", units={"u": replace(IDENTITY, standing=(Standing((FAULT,)),))})
    assert from_plain(json.loads(json.dumps(to_plain(bare)))) == bare


def test_a_latch_of_before_switches_were_watched_waits_for_nobody() -> None:
    written = plain()
    del written["units"][0]["latches"][0]["waiting"]
    assert from_plain(written) == remembered(FULL)


@pytest.mark.parametrize(
    ("damaged", "found"),
    [
        ({"format": 2, "boot_id": "a-boot-that-is-long-enough-to-be-cut"}, "{'format': 2, 'boot_id': 'a-boot-that-is"),
        ([1], "[1]"),
        ({**plain(), "units": [{}]}, "KeyError 'ecc'"),
        ({**plain(), "units": None}, "TypeError 'NoneType' object is not iterable"),
        (
            {**plain(), "node": {**plain()["node"], "standing": [{"clean": 0, "findings": []}]}},
            "ValueError a standing without findings",
        ),
    ],
)
def test_a_file_of_another_form_is_refused_by_name_with_what_was_found(damaged: Any, found: str) -> None:
    with pytest.raises(UnknownFormat) as refused:
        from_plain(damaged)
    assert (refused.value.what, refused.value.found) == ("health memory", found)


@pytest.mark.parametrize(
    ("unit", "place"),
    [
        (IDENTITY, "GPU 3 0000:1b:00.0"),
        (replace(IDENTITY, index=0), "GPU 0 0000:1b:00.0"),
        (replace(IDENTITY, index=-1), "GPU 0000:1b:00.0"),
        (replace(IDENTITY, bus_id=""), "GPU 3 u"),
        (UnitMemory("u"), "GPU u"),
    ],
)
def test_a_gpu_is_named_by_what_is_known_of_it(unit: UnitMemory, place: str) -> None:
    assert unit.place == place
