"""Has the node rebooted that the agent drained for that: once no job holds a unit of it, and not too often."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from nodeagent.agent.actions import Actions
from nodeagent.agent.decider import ASK_AGAIN
from nodeagent.agent.journal import Log
from nodeagent.agent.own_locks import OwnLocks
from nodeagent.agent.site_commands import SiteCommands
from nodeagent.clock import Clock
from nodeagent.config.model import Config
from nodeagent.errors import CommandFailed
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.verdict import Verdict
from nodeagent.history.entry import DONE, DRY_RUN, FAILED, REBOOT
from nodeagent.policy.decide import DrainRecord, RunCommand
from nodeagent.policy.repair import may_reboot, to_reboot
from nodeagent.policy.rules import bad_units
from nodeagent.scheduler.port import Reboots


class Rebooter:
    """Asks for a reboot, and holds all units of the node from then on until it is over or needed no more."""

    def __init__(self, config: Config, actions: Actions, commands: SiteCommands, clock: Clock, log: Log) -> None:
        self._config = config
        self._actions = actions
        self._commands = commands
        self._clock = clock
        self._log = log
        self._locks = OwnLocks(REBOOT, actions, clock, log)
        self._grant = ""
        self._said = ""
        self._ask_again = -inf

    def successor(self, config: Config, actions: Actions, commands: SiteCommands) -> Rebooter:
        """Return the one that goes on with another configuration."""
        new = Rebooter(config, actions, commands, self._clock, self._log)
        new._locks, new._ask_again, new._said = self._locks.successor(actions), self._ask_again, self._said
        new._grant = self._grant
        return new

    def resume(self) -> None:
        """Give back what an agent before this one held."""
        self._locks.resume()

    def step(self, verdict: Verdict, units: Mapping[str, str]) -> None:
        """Ask for a reboot if it is wanted and may be; `units` are all of the node, each with its GPU.

        Raises:
            NodeAgentError, OSError: that could not be told now.

        """
        self._locks.settle()
        policy, record = self._config.policy, self._actions.records.drain()
        off = policy.reboot == "off" or self._actions.maintenance() is not None
        if off or record is None or not to_reboot(verdict, policy, record):
            self._let_go()
            return
        now, before = self._clock.wall(), self._actions.records.reboots()
        if not may_reboot(policy, before, now):
            return
        if policy.dry_run:
            self._only_say(record)
            return
        if self._clock.monotonic() < self._ask_again:
            return
        self._grant = self._grant or self._locks.take(units)
        if not self._grant:
            return
        self._ask_again = self._clock.monotonic() + ASK_AGAIN * self._config.interval
        if not self._stands(record):
            self._let_go()
            return
        self._actions.records.put_reboots([*before, now])  # first: it must not be forgotten over the reboot
        self._ask(verdict, record)

    def _let_go(self) -> None:
        if self._grant:
            self._locks.give_back(self._grant)
            self._grant = ""

    def _stands(self, record: DrainRecord) -> bool:
        """Say whether the node is out of service by our drain: somebody else's is no node of ours to reboot.

        Slurm adds to the reason of a node that it reboots.
        """
        node = self._actions.scheduler.node_state()
        return node.drained and (node.reason is None or node.reason.startswith(record.reason))

    def _only_say(self, record: DrainRecord) -> None:
        if self._said != record.reason:
            self._said = record.reason
            self._log.warning("reboot", dry_run=True, why=record.reason)
            self._actions.deed(REBOOT, why=record.reason, after=DRY_RUN)

    def _ask(self, verdict: Verdict, record: DrainRecord) -> None:
        policy, scheduler = self._config.policy, self._actions.scheduler
        self._log.warning("reboot", by=policy.reboot, why=record.reason)
        try:
            if policy.reboot == "command":
                self._commands.begin(_run(policy.reboot_command, verdict, record, bad_units(verdict, policy)))
            elif isinstance(scheduler, Reboots):
                scheduler.reboot(record.reason)
        except CommandFailed as error:
            self._log.error("reboot_failed", why=str(error))
            self._actions.deed(REBOOT, why=str(error), after=FAILED)
        else:
            self._actions.deed(REBOOT, why=record.reason, after=DONE)


def _run(command: str, verdict: Verdict, record: DrainRecord, bad: int) -> RunCommand:
    """Return the run of a command that is to reboot the node."""
    found = Finding("", "", Severity.ERROR, record.reason, RecoveryAction.REBOOT_NODE)
    return RunCommand(command, "", found, None, verdict.node_findings, REBOOT, bad)
