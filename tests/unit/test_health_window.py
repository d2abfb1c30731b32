"""Windows over readings: what counts as a rise, as a share of time, and what ends a window."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.config.model import Health
from nodeagent.health.memory import from_plain, to_plain
from nodeagent.health.scene import observe
from nodeagent.health.series import Series, Sight, follow, hour
from nodeagent.health.verdict import judge
from nodeagent.health.window import BUCKETS, Window, rise, stand, sustained
from tests.unit.test_health_facts import Cycles, gpu, node, uuid

TEN_MINUTES = 600.0
BEGIN = 5000.0


def stood(levels: list[float], step: float = 10.0) -> Window:
    """Return the window after these levels, one each `step` seconds."""
    window = None
    for number, level in enumerate(levels):
        window = stand(window, level, BEGIN + number * step, TEN_MINUTES)
    assert window is not None
    return window


def rose(counts: list[float], step: float = 10.0) -> Window:
    window = None
    for number, count in enumerate(counts):
        window = rise(window, count, BEGIN + number * step, TEN_MINUTES)
    assert window is not None
    return window


def test_a_counter_is_compared_with_its_first_reading() -> None:
    assert rose([5]).amount == 0
    assert rose([5, 5, 9, 10]).amount == 5


def test_a_counter_that_starts_anew_starts_the_window_anew() -> None:
    assert rose([5, 900, 3]).amount == 0
    assert rose([5, 900, 3, 4]).amount == 1
    assert rose([2**32 - 2, 2**32 - 1, 0, 1]).amount == 1, "one that wraps is one that starts anew"


def test_what_rose_longer_ago_than_the_window_is_forgotten() -> None:
    assert rose([0, 7, *[7] * 58]).amount == 7
    assert rose([0, 7, *[7] * 61]).amount == 0
    assert rose([0, 7, *[7] * 61]).buckets == (), "what is well is not kept"


def test_a_rise_over_a_longer_gap_than_the_window_has_no_date() -> None:
    assert rose([0, 50], step=TEN_MINUTES).amount == 50
    assert rose([0, 50], step=TEN_MINUTES + 1).amount == 0


def test_a_bucket_is_a_twelfth_of_the_window() -> None:
    buckets = stood([1.0] * 12).buckets
    assert buckets == ((BEGIN + 10, 50.0, 50.0), (BEGIN + 60, 50.0, 50.0), (BEGIN + 110, 10.0, 10.0))


def test_a_bucket_that_is_as_old_as_the_window_is_forgotten() -> None:
    assert rose([0, 7, *[7] * 59]).amount == 7
    assert rose([0, 7, *[7] * 60]).amount == 0


def test_what_stood_is_told_in_whole_minutes() -> None:
    assert stood([1.0] * 37 + [0.0] * 18).minutes == "6 of the last 9 minutes"


def test_a_level_counts_the_seconds_for_which_it_stood() -> None:
    assert stood([1]).amount == 0, "a single reading says nothing of a time"
    assert stood([1, 1, 1]).amount == 20
    assert stood([0, 1, 0]).amount == 10, "half of the time before it and half of the time after"
    assert stood([0, 0, 0]).buckets == ()


def test_a_gap_in_the_readings_was_not_observed() -> None:
    assert stood([1, 1], step=300).amount == 300
    assert stood([1, 1], step=301).amount == 0


@pytest.mark.parametrize(("bad", "verdict"), [(36, False), (37, True)])
def test_six_minutes_of_ten_are_the_share(bad: int, verdict: bool) -> None:
    assert sustained(stood([1.0] * bad), 0.6, TEN_MINUTES) is verdict


def test_a_share_of_what_was_observed_needs_a_least_time() -> None:
    assert not sustained(stood([1, 1, 1, 1]), 0.6, 60)
    assert sustained(stood([1, 1, 1, 1, 1]), 0.6, 60)
    assert not sustained(stood([1, 1, 1, 1, 1, *[0] * 20]), 0.6, 60), "good time counts against it"
    assert not sustained(None, 0.6, 60)


def test_a_share_of_nothing_is_any_time_at_all_but_some() -> None:
    assert not sustained(stood([0, 0, 0]), 0.0, 60)
    assert sustained(stood([0, 1], step=1.0), 0.0, 60)


def test_a_share_ends_when_the_good_time_has_pushed_the_bad_out() -> None:
    levels = [1.0] * 61
    assert sustained(stood(levels), 0.6, TEN_MINUTES)
    assert sustained(stood([*levels, *[0.0] * 15]), 0.6, TEN_MINUTES)
    assert not sustained(stood([*levels, *[0.0] * 30]), 0.6, TEN_MINUTES)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=200), st.sampled_from([1.0, 10.0, 60.0, 299.0]))
def test_a_window_is_bounded_and_never_counts_more_than_was_observed(levels: list[float], step: float) -> None:
    window = stood(levels, step)
    assert len(window.buckets) <= BUCKETS + 1
    assert 0 <= window.amount <= window.seen <= TEN_MINUTES + step + TEN_MINUTES / BUCKETS


def errors_of(cycles: Cycles) -> Window:
    return cycles.memory.units[uuid(0)].windows["ecc-corrected"]


def test_a_window_survives_a_restart_of_the_agent_and_an_older_memory_has_none() -> None:
    cycles = Cycles()
    cycles.see(gpu(0, ecc_corrected=0))
    cycles.see(gpu(0, ecc_corrected=5))
    plain = json.loads(json.dumps(to_plain(cycles.memory)))
    assert from_plain(plain) == cycles.memory
    assert errors_of(cycles).amount == 5
    older = [
        {key: value for key, value in unit.items() if key not in ("windows", "nvlinks")} for unit in plain["units"]
    ]
    assert from_plain({**plain, "units": older}).units[uuid(0)].windows == {}


def test_a_window_ends_with_a_new_initialisation_of_the_gpu_and_with_the_boot() -> None:
    cycles = Cycles()
    cycles.see(gpu(0, ecc_corrected=0, energy=900.0))
    cycles.see(gpu(0, ecc_corrected=5, energy=910.0))
    cycles.see(gpu(0, ecc_corrected=6, energy=1.0))
    assert errors_of(cycles).amount == 0
    cycles.see(gpu(0, ecc_corrected=9, energy=2.0))
    assert errors_of(cycles).amount == 3
    cycles.judge(node(gpu(0, ecc_corrected=99), boot_id="boot-b"))
    assert errors_of(cycles).amount == 0


def test_no_value_leaves_the_window_as_it_is() -> None:
    cycles = Cycles()
    cycles.see(gpu(0, ecc_corrected=0))
    cycles.see(gpu(0, ecc_corrected=5))
    before = errors_of(cycles)
    cycles.see(gpu(0))
    cycles.see(hung=True, hung_uuid=uuid(0))
    assert errors_of(cycles) == before


def test_a_window_of_a_check_that_is_no_more_is_dropped() -> None:
    cycles = Cycles()
    cycles.see(gpu(0, ecc_corrected=0))
    unit = cycles.memory.units[uuid(0)]
    old = replace(unit, windows={**unit.windows, "gone": Window(0.0, 1.0)})
    memory = replace(cycles.memory, units={uuid(0): old})
    assert "gone" not in judge(memory, node(gpu(0)), Health())[1].units[uuid(0)].windows


def test_a_reader_is_told_the_window_that_there_is() -> None:
    told: list[Window | None] = []

    def read(sight: Sight) -> float:
        told.append(sight.window)
        return 1.0

    cycles = Cycles()
    cycles.see(gpu(0))

    facts = node(gpu(0), monotonic=500.0)
    scene = follow(observe(cycles.memory, facts, Health()), cycles.memory, Health(), {"s": Series(read, hour)}, {})
    assert told == [None]
    assert scene.units[uuid(0)].windows == {"s": Window(500.0, 1.0)}
