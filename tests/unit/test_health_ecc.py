"""The watch over uncorrected errors: where it begins, what trips it, what starts it anew."""

from __future__ import annotations

import pytest

from nodeagent.health.ecc import HOUR, watch
from nodeagent.health.memory import EccWatch

THEN, NOW = 5000.0, 5000.0 + HOUR
KNOWN = EccWatch(baseline=4, last=6, since=THEN)
TRIPPED = EccWatch(baseline=4, last=9, since=THEN, tripped=True)


@pytest.mark.parametrize(
    ("old", "count", "restarted", "now", "new"),
    [
        (None, 4, False, NOW, EccWatch(4, 4, NOW)),
        (None, None, False, NOW, None),
        (KNOWN, None, True, NOW, KNOWN),
        (KNOWN, 6, False, NOW - 1, EccWatch(4, 6, THEN)),
        (KNOWN, 7, False, NOW - 1, EccWatch(4, 7, THEN, tripped=True)),
        (KNOWN, 8, False, NOW, EccWatch(6, 8, NOW)),
        (KNOWN, 9, False, NOW, EccWatch(6, 9, NOW, tripped=True)),
        (KNOWN, 5, False, NOW - 1, EccWatch(0, 5, NOW - 1, tripped=True)),
        (KNOWN, 2, False, NOW - 1, EccWatch(0, 2, NOW - 1)),
        (KNOWN, 7, True, NOW - 1, EccWatch(0, 7, NOW - 1, tripped=True)),
        (TRIPPED, 9, False, NOW, EccWatch(4, 9, THEN, tripped=True)),
        (TRIPPED, 1, False, NOW, EccWatch(0, 1, NOW)),
    ],
)
def test_two_errors_an_hour_are_allowed(
    old: EccWatch | None, count: int | None, restarted: bool, now: float, new: EccWatch | None
) -> None:
    assert watch(old, count, restarted, 2, now) == new
