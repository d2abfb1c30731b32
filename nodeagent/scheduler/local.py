"""No scheduler: nothing to drain, nobody to ask; locks alone decide (`gpu-nodeagent exec`)."""

from __future__ import annotations

from nodeagent.scheduler.port import Fleet, NodeState


class LocalScheduler:
    """A node on its own. `spares_units`: a retired GPU is simply never granted. A drain is only remembered."""

    name = "local"
    spares_units = True

    def __init__(self) -> None:
        self._reason = ""

    def node_state(self) -> NodeState:
        """See Scheduler."""
        return NodeState(bool(self._reason), self._reason)

    def fleet(self) -> Fleet:
        """See Scheduler."""
        return Fleet(1, 0)

    def drain_scope(self) -> str:
        """See Scheduler."""
        return "node"

    def drain(self, reason: str, scope: str) -> None:
        """See Scheduler: there is nobody to tell."""
        self._reason = reason

    def resume(self, scope: str) -> None:
        """See Scheduler: there is nobody to tell."""
        self._reason = ""

    def gres_minors(self) -> dict[int, int]:
        """See Scheduler."""
        return {}
