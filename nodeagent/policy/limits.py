"""How much of the cluster may be out at once: obeyed before every drain. Pure."""

from __future__ import annotations

from nodeagent.scheduler.port import Fleet


def most_drained(max_drained: str, nodes: int) -> int:
    """Return how many of `nodes` may be drained: `4`, or a share such as `10%`, rounded up and at least 1."""
    if max_drained.endswith("%"):
        share = int(max_drained[:-1])
        return max(1, -(-nodes * share // 100)) if share else 0
    return int(max_drained)


def may_drain(fleet: Fleet, max_drained: str) -> bool:
    """Say whether one more node may go.

    What is counted is what the scheduler shows at that moment; agents that drain within the same moment can overshoot
    by the number of them (docs/decisions: the limit).
    """
    return fleet.drained_by_us < most_drained(max_drained, fleet.nodes)
