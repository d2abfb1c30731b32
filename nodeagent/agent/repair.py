"""What the agent does to repair its node, where the configuration allows it: reset a GPU, have the node rebooted."""

from __future__ import annotations

from nodeagent.agent.actions import Actions
from nodeagent.agent.journal import Log
from nodeagent.agent.lending import Lender, Lending
from nodeagent.agent.rebooter import Rebooter
from nodeagent.agent.resetter import Resetter
from nodeagent.agent.site_commands import SiteCommands
from nodeagent.clock import Clock
from nodeagent.config.model import Config
from nodeagent.health.memory import Memory
from nodeagent.health.units import Instances, units_of
from nodeagent.health.verdict import Verdict
from nodeagent.policy.repair import to_reset


class Repair:
    """Resets and reboots of one node."""

    def __init__(
        self, config: Config, actions: Actions, commands: SiteCommands, lender: Lender, clock: Clock, log: Log
    ) -> None:
        self._config = config
        self._actions = actions
        self._resetter = Resetter(config, actions, lender, clock, log)
        self._rebooter = Rebooter(config, actions, commands, clock, log)
        self._lender = lender
        self._clock = clock
        self._log = log

    def successor(self, config: Config, actions: Actions, commands: SiteCommands) -> Repair:
        """Return the one that goes on with another configuration."""
        new = Repair(config, actions, commands, self._lender, self._clock, self._log)
        new._resetter = self._resetter.successor(config, actions)
        new._rebooter = self._rebooter.successor(config, actions, commands)
        return new

    @property
    def due(self) -> float:
        """When a cycle is due on this account, by the clock's monotonic seconds; inf for never."""
        return self._resetter.due

    def resume(self) -> None:
        """Take up what an agent before this one has tried, and give back what it held meanwhile."""
        self._resetter.resume()
        self._rebooter.resume()

    def close(self) -> None:
        """End what runs."""
        self._resetter.close()

    def reboot(self, verdict: Verdict, instances: Instances) -> None:
        """Have the node rebooted, if it is time for that."""
        units = {name: unit.uuid for unit in verdict.units for name in units_of(unit.uuid, instances)}
        self._rebooter.step(verdict, units)

    def reset(self, verdict: Verdict, memory: Memory, found: Lending, instances: Instances) -> None:
        """Begin a reset, if one is wanted, or go on with it.

        `found` is what the last sweep says of lending the driver; of none, in a cycle without one. A GPU in MIG mode is
        not reset: that would end its instances.
        """
        policy = self._config.policy
        standing = {uuid for uuid, unit in memory.units.items() if any(not one.clean for one in unit.standing)}
        idle = set(found.gpus).difference(instances)
        wanted = to_reset(verdict, policy, self._actions.retired(), idle, standing) if policy.reset == "on" else []
        self._resetter.step(wanted)
