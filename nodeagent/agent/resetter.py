"""Resets a retired GPU that asks for it and that nobody has: under a lock of its own, with the driver let go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from nodeagent.agent.actions import Actions
from nodeagent.agent.journal import Log
from nodeagent.agent.lending import RELEASE_DRIVER, Lender
from nodeagent.agent.own_locks import OwnLocks
from nodeagent.clock import Clock
from nodeagent.config.model import Config
from nodeagent.config.policy_rules import SiteCommand
from nodeagent.errors import NodeAgentError
from nodeagent.external.child import Outcome, Run
from nodeagent.gpu.facts import BROKEN
from nodeagent.history.entry import DONE, DRY_RUN, FAILED, RESET
from nodeagent.state.documents import read_document, write_document
from nodeagent.state.events import Event

RESETS = "resets"
"""The document that says how often each retired GPU has been reset in this boot."""
_BY = "reset"
_SOON = 0.5
_SLACK = 40.0
"""Seconds that others of ours, which may have the driver open, are given to end."""
_PAUSE = 60.0
"""Seconds at least from the end of one reset to the next: the GPU is to be looked at first."""


@dataclass(frozen=True)
class _Reset:
    """One reset: of which GPU, by which grant, until when it must have begun, and its run once it has."""

    unit: str
    grant: str
    until: float
    run: Run | None = None


class Resetter:
    """At most one reset at a time. Never blocks."""

    def __init__(self, config: Config, actions: Actions, lender: Lender, clock: Clock, log: Log) -> None:
        self._config = config
        self._actions = actions
        self._lender = lender
        self._clock = clock
        self._log = log
        self._locks = OwnLocks(_BY, actions, clock, log)
        self._current: _Reset | None = None
        self._tries: dict[str, int] = {}
        """`UUID since` of a retirement → how often."""
        self._rest = -inf
        self._said: set[str] = set()

    def successor(self, config: Config, actions: Actions) -> Resetter:
        """Return the one that goes on with another configuration."""
        new = Resetter(config, actions, self._lender, self._clock, self._log)
        new._locks = self._locks.successor(actions)
        new._current, new._tries, new._rest, new._said = self._current, self._tries, self._rest, self._said
        return new

    @property
    def due(self) -> float:
        """When a cycle is due on this account, by the clock's monotonic seconds; inf for never."""
        return inf if self._current is None else self._clock.monotonic() + _SOON

    def resume(self) -> None:
        """Take up what an agent before this one has tried, and give back what it held meanwhile."""
        try:
            known = read_document(self._actions.store.state, RESETS) or {}
            self._tries = {str(key): int(count) for key, count in known.get("tries", {}).items()}
        except (NodeAgentError, OSError, ValueError, TypeError, AttributeError) as error:
            self._log.error("step_failed", step="resume_resets", why=str(error))
        self._locks.resume()

    def close(self) -> None:
        """End what runs, and give the GPU back: it stays retired."""
        if self._current is not None:
            if self._current.run is not None:
                self._current.run.stop(_SOON)
            self._locks.give_back(self._current.grant)

    def step(self, wanted: Sequence[str]) -> None:
        """Go on with the reset that is under way, or begin one, of the GPUs that are `wanted`.

        Raises:
            NodeAgentError, OSError: none could be begun now.

        """
        self._locks.settle()
        if self._current is not None:
            self._go_on(self._current)
            return
        policy = self._config.policy
        if policy.reset != "on" or self._lender.is_out or self._clock.monotonic() < self._rest:
            return
        if self._actions.maintenance() is not None:
            return
        retired = self._actions.retired()
        for unit in wanted:
            key = f"{unit} {retired.get(unit, {}).get('since', '')}"
            if policy.dry_run:
                self._only_say(key, unit)
            elif self._tries.get(key, 0) < policy.reset_tries and self._begin(key, unit):
                return

    def _only_say(self, key: str, unit: str) -> None:
        if key not in self._said:
            self._said.add(key)
            self._log.warning("reset_begun", dry_run=True, gpu_uuid=unit)
            self._actions.deed(RESET, unit, after=DRY_RUN)

    def _begin(self, key: str, unit: str) -> bool:
        """Take the GPU, then the driver; False if somebody has the GPU."""
        policy = self._config.policy
        grant = self._locks.take({unit: unit})
        if not grant:
            return False
        self._tries[key] = self._tries.get(key, 0) + 1
        self._current = _Reset(unit, grant, self._clock.monotonic() + _SLACK)
        self._log.warning("reset_begun", gpu_uuid=unit, times=f"{self._tries[key]} of {policy.reset_tries}")
        seconds = _SLACK + policy.reset_timeout + _SLACK
        self._lender.told(self._request(seconds, grant))
        self._remember()
        return True

    def _request(self, seconds: float, token: str = "") -> Event:
        return Event(RELEASE_DRIVER, self._clock.wall(), {"seconds": f"{seconds:g}", "by": _BY, "request": token})

    def _remember(self) -> None:
        try:
            write_document(self._actions.store.state, RESETS, {"tries": self._tries})
        except (NodeAgentError, OSError) as error:
            self._log.error("step_failed", step="remember_resets", why=str(error))

    def _go_on(self, current: _Reset) -> None:
        run, policy = current.run, self._config.policy
        if run is not None:
            if run.is_over():
                run.close()
                self._end(current, run.outcome or Outcome(BROKEN, why="ended without a word of how"))
        elif self._lender.request != current.grant or self._clock.monotonic() > current.until:
            self._end(current, Outcome(BROKEN, why="the agent could not let go of the driver, or had to take it back"))
        elif self._lender.is_free:
            words = tuple(word.replace("{uuid}", current.unit) for word in policy.reset_command)
            run = Run(SiteCommand(words, timeout=policy.reset_timeout))
            run.begin()
            self._current = replace(current, run=run)

    def _end(self, current: _Reset, outcome: Outcome) -> None:
        """Give everything back, and tell; whether it has helped, the next looks say."""
        self._current = None
        looks = (self._config.health.recover + 2) * self._config.interval
        self._rest = self._clock.monotonic() + max(_PAUSE, looks)
        if self._lender.request == current.grant:
            self._lender.told(self._request(0))
        self._locks.give_back(current.grant)
        why = outcome.told(self._config.policy.reset_timeout)
        if outcome.is_fine:
            self._log.warning("reset_ended", gpu_uuid=current.unit, why=why)
        else:
            self._log.error("reset_failed", gpu_uuid=current.unit, why=why)
        self._actions.deed(RESET, current.unit, why, after=DONE if outcome.is_fine else FAILED)
