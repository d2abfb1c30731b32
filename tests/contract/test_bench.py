"""The benches of the agent give figures that make sense; what they are is for `make bench` on a quiet machine."""

from __future__ import annotations

import pytest

from bench import poll, xid
from bench.figure import Figure
from tests.simnvml import build
from tests.simulated_node import ROOT

POLLS = 3


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    """What a short bench of polls gives, by name."""
    build(ROOT / "build" / "simnvml")
    return {figure.name: figure for figure in poll.measure(POLLS)}


def test_a_poll_takes_longer_than_its_calls(figures: dict[str, Figure]) -> None:
    ratios = [figure for name, figure in figures.items() if name.startswith("poll / its NVML calls")]
    assert len(ratios) == 1 + len(poll.CALLS)
    assert all(1 < figure.value < 20 for figure in ratios)


def test_only_where_calls_take_time_is_the_share_limited(figures: dict[str, Figure]) -> None:
    limited = [name for name, figure in figures.items() if figure.limit == poll.LIMIT]
    assert len(limited) == len(poll.CALLS) and not any("nothing" in name for name in limited)
    assert figures["a poll without its NVML calls"].value > 0.3


def test_slow_calls_are_slow_and_all_are_metered() -> None:
    slow = poll.series(POLLS, 0.001)
    for one in slow:
        assert one.count > 20 * poll.GPUS
        assert one.count < one.calls <= one.probe <= one.whole  # milliseconds: each call takes one


def test_an_xid_is_followed_to_the_verdict() -> None:
    worst, median = xid.measure(2, interval=2.0, rest=(0.1, 0.2))
    assert 0.2 < median.value <= worst.value < 2
