"""How much of the cluster may be out at once: obeyed before every drain. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from nodeagent.scheduler.port import Fleet


def most_drained(max_drained: str, nodes: int) -> int:
    """Return how many of `nodes` may be drained: `4`, or a share such as `10%`, rounded up and at least 1."""
    if max_drained.endswith("%"):
        share = int(max_drained[:-1])
        return max(1, -(-nodes * share // 100)) if share else 0
    return int(max_drained)


def full(fleets: Iterable[Fleet], max_drained: str) -> Fleet | None:
    """Return the nodes of which no further one may go, of several that the node is among; None where it may.

    Between counting and draining nobody else may drain: see `Scheduler.turn`.
    """
    return next((one for one in fleets if one.drained_by_us >= most_drained(max_drained, one.nodes)), None)
