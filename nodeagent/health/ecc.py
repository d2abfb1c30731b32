"""Uncorrected ECC errors over time: a rise trips the watch, a counter that starts anew resets it. Pure."""

from __future__ import annotations

from nodeagent.health.memory import EccWatch

HOUR = 3600.0


def watch(old: EccWatch | None, count: int | None, restarted: bool, per_hour: float, now: float) -> EccWatch | None:
    """Return the watch after a reading of the volatile count.

    Errors from before the first reading are not held against the GPU: nobody knows when they were. A count that fell,
    or `restarted` (the energy counter began again), means that the driver initialised the GPU anew: then all that is
    counted is new. More than `per_hour` errors within an hour trip the watch; the hours are counted from the baseline.
    """
    if count is None:
        return old
    if old is None:
        return EccWatch(count, count, now)
    baseline, since = old.baseline, old.since
    if restarted or count < old.last:
        baseline, since = 0, now
    elif now - since >= HOUR and not old.tripped:
        baseline, since = old.last, now
    return EccWatch(baseline, count, since, tripped=count - baseline > per_hour)
