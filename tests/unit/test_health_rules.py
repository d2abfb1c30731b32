"""When a finding counts: what is tallied from one cycle to the next, what is missing yet, at its limits."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.config.model import Health
from nodeagent.config.values import Within
from nodeagent.health.memory import UnitMemory
from nodeagent.health.rules import Tally, clean_for, missing, tally

NOW = 1000.0
RULES = Health(default_strikes=2, strikes={"w": Within(3, 60.0), "s": 4}, dwell={"s": 30.0, "xid": 30.0}, settle=60.0)
STRUCK = UnitMemory("u", strikes={"w": 2, "s": 1}, rows={"w": 950.0, "s": 990.0}, stamps={"w": (950.0,), "s": (990.0,)})


def after(unit: UnitMemory, struck: dict[str, float], judged: bool = True, now: float = NOW) -> dict[str, Any]:
    return vars(tally(unit, struck, judged, now, RULES))


def test_a_first_strike_begins_a_row() -> None:
    assert after(UnitMemory("u"), {"s": NOW}) == {"strikes": {"s": 1}, "rows": {"s": NOW}, "stamps": {"s": (NOW,)}}


@pytest.mark.parametrize(("at", "began"), [(995.0, 995.0), (1000.5, NOW)])
def test_a_row_begins_when_it_was_seen_but_not_after_the_cycle(at: float, began: float) -> None:
    assert after(UnitMemory("u"), {"s": at}) == {"strikes": {"s": 1}, "rows": {"s": began}, "stamps": {"s": (at,)}}


def test_a_second_strike_is_counted_and_the_last_stamp_is_kept() -> None:
    found = after(STRUCK, {"s": NOW})
    assert found == {
        "strikes": {"s": 2},
        "rows": {"s": 990.0},
        "stamps": {"w": (950.0,), "s": (NOW,)},
    }, "a rule within a time outlives the end of its row"


def test_what_is_told_again_is_no_strike_and_stays() -> None:
    assert after(STRUCK, {"s": 990.0, "w": 950.0}) == {
        "strikes": {"w": 2, "s": 1},
        "rows": {"w": 950.0, "s": 990.0},
        "stamps": {"w": (950.0,), "s": (990.0,)},
    }


def test_an_observation_of_before_a_clean_cycle_is_a_strike_when_it_is_found_again() -> None:
    unit = UnitMemory("u", stamps={"s": (990.0,)})
    assert after(unit, {"s": 990.0}) == {"strikes": {"s": 1}, "rows": {"s": 990.0}, "stamps": {"s": (990.0,)}}


def test_a_cycle_without_reading_ends_no_row() -> None:
    assert after(STRUCK, {}, judged=False) == {
        "strikes": {"w": 2, "s": 1},
        "rows": {"w": 950.0, "s": 990.0},
        "stamps": {"w": (950.0,), "s": (990.0,)},
    }
    assert after(STRUCK, {}) == {"strikes": {}, "rows": {}, "stamps": {"w": (950.0,)}}
    assert (STRUCK.strikes, STRUCK.rows) == ({"w": 2, "s": 1}, {"w": 950.0, "s": 990.0}), "left as it was"


@pytest.mark.parametrize(
    ("stamps", "now", "kept"),
    [
        ((941.0, 950.0), 1000.0, (941.0, 950.0, 1000.0)),
        ((940.0, 950.0), 1000.0, (950.0, 1000.0)),
        ((941.0, 950.0, 960.0), 1000.0, (950.0, 960.0, 1000.0)),
        ((941.0, 1000.0), 1000.0, (941.0, 1000.0)),
    ],
)
def test_stamps_are_kept_while_they_can_make_up_the_number(
    stamps: tuple[float, ...], now: float, kept: tuple[float, ...]
) -> None:
    assert after(UnitMemory("u", stamps={"w": stamps}), {"w": now}, now=now)["stamps"] == {"w": kept}


def test_stamps_that_are_too_old_leave_nothing_behind() -> None:
    assert after(UnitMemory("u", stamps={"w": (940.0,)}), {})["stamps"] == {}


def lack(check: str, strikes: int, since: float = 0.0, stamps: int = 0, now: float = NOW, **rules: Any) -> str:
    seen = Tally({check: strikes}, {check: since}, {check: tuple(float(one) for one in range(stamps))})
    return missing(check, seen, now, Health(**{**vars(RULES), **rules}))


@pytest.mark.parametrize(
    ("check", "strikes", "since", "stamps", "now", "words"),
    [
        ("other", 1, 0.0, 0, NOW, "seen 1 of 2 times"),
        ("other", 2, NOW, 0, NOW, ""),
        ("s", 3, 0.0, 0, NOW, "seen 3 of 4 times"),
        ("s", 4, 970.5, 0, NOW, "stands for 29.5 of 30 s"),
        ("s", 4, 970.0, 0, NOW, ""),
        ("w", 9, 0.0, 2, NOW, "seen 2 of 3 times within 60 s"),
        ("w", 1, NOW, 3, NOW, ""),
        ("other", 9, 0.0, 0, 59.9, "counts from 60 s after the boot on"),
        ("other", 9, 0.0, 0, 60.0, ""),
        ("xid", 1, NOW, 0, 1.0, ""),
    ],
)
def test_what_is_missing_until_it_counts(
    check: str, strikes: int, since: float, stamps: int, now: float, words: str
) -> None:
    assert lack(check, strikes, since, stamps, now) == words


def test_stamps_that_are_not_there_are_none() -> None:
    assert missing("w", Tally({"w": 1}, {"w": NOW}, {}), NOW, RULES) == "seen 0 of 3 times within 60 s"


@pytest.mark.parametrize(
    ("check", "after_s", "seconds"),
    [("w", 0.0, 60.0), ("w", 59.0, 60.0), ("w", 61.0, 61.0), ("s", 0.0, 0.0), ("s", 5.0, 5.0), ("other", 0.0, 0.0)],
)
def test_how_long_a_unit_has_to_be_clean(check: str, after_s: float, seconds: float) -> None:
    assert clean_for(check, Health(strikes=RULES.strikes, recover_after={check: after_s})) == seconds
    assert clean_for(check, Health(strikes=RULES.strikes)) == (60.0 if check == "w" else 0.0)


def test_a_time_within_which_xids_would_count_is_not_waited_for() -> None:
    rules = Health(strikes={"xid": Within(3, 60.0)})
    assert clean_for("xid", rules) == 0.0
    assert clean_for("xid", Health(strikes=rules.strikes, recover_after={"xid": 5.0})) == 5.0
