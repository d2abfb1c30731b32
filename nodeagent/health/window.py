"""What happened to one reading of one unit within the last so many seconds, in a few buckets. Pure.

Two kinds. A counter: by how much it rose. A level between 0 and 1: for how many seconds it was at 1 (half of it at ½),
which tells a share of time from a sample. Both run on the monotonic stamps of the facts; a window ends with the boot,
with a counter that starts anew, and when a GPU is initialised anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

BUCKETS = 12
MINUTE, HOUR = 60.0, 3600.0

Windows = Mapping[str, "Window"]


@dataclass(frozen=True)
class Window:
    """`at` and `value` are the last reading. A bucket is (began, seconds that were observed, amount).

    Buckets are kept only while there is an amount in them: what is well costs nothing.
    """

    at: float
    value: float
    buckets: tuple[tuple[float, float, float], ...] = ()

    @property
    def amount(self) -> float:
        """By how much the counter rose, or for how many seconds the level stood."""
        return sum(amount for _, _, amount in self.buckets)

    @property
    def seen(self) -> float:
        """Seconds that were observed since the first amount that is still in the window."""
        return sum(seen for _, seen, _ in self.buckets)

    @property
    def minutes(self) -> str:
        """For how long the level stood, in words: of the time since it first did that is still in the window."""
        return f"{self.amount / MINUTE:.0f} of the last {self.seen / MINUTE:.0f} minutes"


def rise(old: Window | None, value: float, now: float, length: float) -> Window:
    """Return the window after a reading of a counter.

    The first reading is where counting begins. A counter that fell has started anew, and so does the window. What came
    in more than `length` seconds without a reading has no date and is not counted.
    """
    if old is None or value < old.value:
        return Window(now, value)
    elapsed = now - old.at
    return _add(old, value, now, elapsed, 0.0 if elapsed > length else value - old.value, length)


def stand(old: Window | None, level: float, now: float, length: float) -> Window:
    """Return the window after a reading of a level, 0 to 1.

    Between two readings it is taken to have been their mean; a gap of more than half the window was not observed.
    """
    if old is None:
        return Window(now, level)
    elapsed = now - old.at
    if elapsed > length / 2:
        elapsed = 0.0
    return _add(old, level, now, elapsed, elapsed * (old.value + level) / 2, length)


def _add(old: Window, value: float, now: float, seen: float, amount: float, length: float) -> Window:
    buckets = [bucket for bucket in old.buckets if bucket[0] > now - length]
    if buckets and now - buckets[-1][0] < length / BUCKETS:
        began, before, sum_before = buckets[-1]
        buckets[-1] = (began, before + seen, sum_before + amount)
    elif buckets or amount:
        buckets.append((now, seen, amount))
    if not any(sum_in for _, _, sum_in in buckets):
        buckets = []
    return replace(old, at=now, value=value, buckets=tuple(buckets))


def sustained(window: Window | None, share: float, least: float) -> bool:
    """Say whether a level stood for that share of the time observed, of which there must be `least` seconds.

    With less observed than `least` it is measured against `least`: `share * least` seconds at the full level suffice.
    """
    return window is not None and window.amount > 0 and window.amount >= share * max(window.seen, least)


def to_plain(windows: Windows) -> dict[str, Any]:
    """Return windows as JSON has them."""
    return {name: [one.at, one.value, [list(bucket) for bucket in one.buckets]] for name, one in windows.items()}


def from_plain(plain: Mapping[str, Any]) -> dict[str, Window]:
    """Return the windows that `to_plain` wrote; raises ValueError, TypeError or AttributeError for anything else."""
    found = {}
    for name, (at, value, buckets) in plain.items():
        whole = tuple((float(began), float(seen), float(amount)) for began, seen, amount in buckets)
        found[str(name)] = Window(float(at), float(value), whole)
    return found
