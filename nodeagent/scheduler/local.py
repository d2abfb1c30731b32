"""No scheduler: nothing to drain, nobody to ask; locks alone decide (`gpu-nodeagent exec`)."""

from __future__ import annotations

from collections.abc import Iterable

from nodeagent.lock.record import Owner
from nodeagent.scheduler.port import Fleet, NodeState
from nodeagent.scheduler.turn import Turn, Unshared
from nodeagent.state.hook_conf import Gres


class LocalScheduler:
    """A node on its own. `spares_units`: a retired GPU is simply never granted. A drain is only remembered."""

    name = "local"
    spares_units = True

    def __init__(self) -> None:
        self._reason = ""

    def node_state(self) -> NodeState:
        """See Scheduler."""
        return NodeState(bool(self._reason), self._reason)

    def granted(self, owner: Owner) -> tuple[int, ...] | None:
        """See Scheduler."""
        return None

    def fleets(self) -> tuple[Fleet, ...]:
        """See Scheduler."""
        return (Fleet(1, 0),)

    def turn(self) -> Turn:
        """See Scheduler."""
        return Unshared()

    def drain_scope(self) -> str:
        """See Scheduler."""
        return "node"

    def drain(self, reason: str, scope: str) -> str:
        """See Scheduler: there is nobody to tell."""
        self._reason = reason
        return scope

    def resume(self, scope: str) -> None:
        """See Scheduler: there is nobody to tell."""
        self._reason = ""

    def ended_here(self, owners: Iterable[Owner]) -> dict[str, str]:
        """See Scheduler: an `exec` ends with its process, which the locks know themselves."""
        return {}

    def ended(self, owners: Iterable[Owner]) -> dict[str, str]:
        """See Scheduler: there is nobody to ask."""
        return {}

    def gres(self) -> dict[int, Gres]:
        """See Scheduler."""
        return {}
