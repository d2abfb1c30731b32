"""The agent's own locks: who resets a GPU, or reboots the node, first makes sure that nobody gets it meanwhile."""

from __future__ import annotations

from collections.abc import Mapping

from nodeagent.agent.actions import Actions
from nodeagent.agent.journal import Log
from nodeagent.clock import Clock
from nodeagent.errors import NodeAgentError, UnitHeld
from nodeagent.lock.record import MAINTENANCE, Owner, new_grant


class OwnLocks:
    """Locks units with `scheduler=maintenance`; `by` is the lock's user, which tells the agent's from others'."""

    def __init__(self, by: str, actions: Actions, clock: Clock, log: Log) -> None:
        self._by = by
        self._actions = actions
        self._clock = clock
        self._log = log
        self._owed: set[str] = set()

    def successor(self, actions: Actions) -> OwnLocks:
        """Return the one that goes on with another configuration."""
        new = OwnLocks(self._by, actions, self._clock, self._log)
        new._owed = self._owed
        return new

    def resume(self) -> None:
        """Give back what an agent before this one held: what it did is over, or nobody knows of it."""
        try:
            owners = self._actions.store.owners().values()
        except (NodeAgentError, OSError) as error:
            self._log.error("step_failed", step=f"resume_{self._by}", why=str(error))
            return
        self._owed |= {owner.grant for owner in owners if (owner.scheduler, owner.user) == (MAINTENANCE, self._by)}
        self.settle()

    def take(self, gpus: Mapping[str, str]) -> str:
        """Lock units (each with its GPU) and return the grant; empty if anybody has one of them, or a part of its GPU.

        Raises:
            NodeAgentError, OSError: that cannot be told now, or not be written; nothing is locked.

        """
        store, grant = self._actions.store, new_grant()
        owner = Owner(
            MAINTENANCE,
            grant=grant,
            user=self._by,
            boot_id=self._actions.boot_id,
            since=int(self._clock.wall()),
            units=tuple(gpus),
            gpus=tuple(gpus.values()),
        )
        with store.exclusive():
            if any(other.gpu_of(unit) in gpus.values() for unit, other in store.owners().items()):
                return ""
            try:
                store.claim(owner)
            except UnitHeld:
                return ""
        return grant

    def give_back(self, grant: str) -> None:
        """Free what was taken; what cannot be freed now is by a later `settle`."""
        self._owed.add(grant)
        self.settle()

    def settle(self) -> None:
        """Free what is owed."""
        if not self._owed:
            return
        try:
            with self._actions.store.exclusive():
                self._actions.store.release(lambda owner: owner.grant in self._owed)
            self._owed.clear()
        except (NodeAgentError, OSError) as error:
            self._log.warning("step_failed", step=f"free_{self._by}", why=str(error))
