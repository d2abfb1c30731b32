"""The site's commands that the policy runs: each once a decision, beside the loop, and what came of it is told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from nodeagent.agent.actions import Actions
from nodeagent.agent.journal import Log
from nodeagent.clock import Clock
from nodeagent.config.model import Config
from nodeagent.config.policy_rules import SiteCommand
from nodeagent.errors import NodeAgentError
from nodeagent.external.child import Outcome, Run
from nodeagent.gpu.facts import BROKEN, ENDED, HUNG
from nodeagent.history.entry import COMMAND, DONE, FAILED
from nodeagent.policy.decide import RunCommand
from nodeagent.report import iso, plain_finding, plain_unit, schema
from nodeagent.state.documents import read_document, write_document

COMMANDS = "commands"
"""The document that says which have been begun: a restart of the agent begins none anew, a reboot does."""
MOST_AT_ONCE = 4
_GRACE = 2.0
"""Seconds that the agent's end waits for commands to be gone."""
_LATE = 5.0
"""Seconds beyond its time-out after which a command that is not over counts as hung: its start hangs, or its end."""


@dataclass
class _Errand:
    """One command that is to run, or does. `late`: it has been told as hung."""

    decision: RunCommand
    program: SiteCommand
    text: str
    run: Run | None = None
    started: float = 0.0
    late: bool = False


class SiteCommands:
    """Runs commands (see agent/decider.py: Commands), at most MOST_AT_ONCE beside each other. Never blocks."""

    def __init__(self, config: Config, node: str, actions: Actions, clock: Clock, log: Log) -> None:
        self.begun: set[tuple[str, str]] = set()
        """The keys of what has been begun and is still wanted."""
        self.counts: Counter[tuple[str, str]] = Counter()
        """(command, ended | failed | hung | broken | abandoned) -> how often."""
        self._config = config
        self._node = node
        self._actions = actions
        self._clock = clock
        self._log = log
        self._errands: list[_Errand] = []
        self._stuck: list[Run] = []

    def successor(self, config: Config, actions: Actions) -> SiteCommands:
        """Return the one that goes on with another configuration: what has been begun ends as it began."""
        new = SiteCommands(config, self._node, actions, self._clock, self._log)
        new.begun, new.counts, new._errands, new._stuck = self.begun, self.counts, self._errands, self._stuck
        return new

    def resume(self) -> None:
        """Take up what an agent before this one has begun."""
        try:
            known = read_document(self._actions.store.state, COMMANDS) or {}
            self.begun = {(str(command), str(unit)) for command, unit in known.get("begun", ())}
        except (NodeAgentError, OSError, ValueError, TypeError) as error:
            self._log.error("step_failed", step="resume_commands", why=str(error))

    def begin(self, decision: RunCommand) -> None:
        """Have a command run. It is noted first: an agent that is killed then runs it no second time."""
        self.begun.add(decision.key)
        self._remember()
        program = self._config.policy.commands[decision.command]
        text = json.dumps(document(decision, self._node, self._clock.wall())) + "\n"
        self._errands.append(_Errand(decision, program, text))

    def forget(self, keys: Collection[tuple[str, str]]) -> None:
        """Begin these anew when they are wanted again."""
        if not self.begun.isdisjoint(keys):
            self.begun.difference_update(keys)
            self._remember()

    def step(self, resting: bool = False) -> None:
        """Take up what has ended, and start what waits; nothing while `resting`."""
        now = self._clock.monotonic()
        self._stuck = [run for run in self._stuck if run.abandoned is not None and run.abandoned.poll() is None]
        for errand in list(self._errands):
            if errand.run is not None and errand.run.is_over():
                self._errands.remove(errand)
                self._end(errand, errand.run)
            elif errand.run is not None and not errand.late and now - errand.started > errand.program.timeout + _LATE:
                errand.late = True
                self._note(errand, Outcome(HUNG))
        running = sum(errand.run is not None and not errand.late for errand in self._errands)
        waiting = [errand for errand in self._errands if errand.run is None]
        for errand in waiting[: 0 if resting else max(0, MOST_AT_ONCE - running)]:
            errand.started = now
            errand.run = Run(errand.program, errand.text)
            errand.run.begin()

    def left(self) -> tuple[int, int]:
        """Return how many commands run, and how many processes were left behind because nothing ends them."""
        return sum(errand.run is not None for errand in self._errands), len(self._stuck)

    def close(self) -> None:
        """End what runs. What has not ended by itself is begun again by the next agent, if it is still wanted."""
        for errand in self._errands:
            if errand.run is not None:
                errand.run.stop()
        deadline = self._clock.monotonic() + _GRACE
        for errand in self._errands:
            if errand.run is not None:
                errand.run.stop(max(0.0, deadline - self._clock.monotonic()))
        cut = [errand for errand in self._errands if errand.run is None or errand.run.outcome is None]
        for errand in self._errands:
            if errand.run is not None and errand not in cut:
                self._end(errand, errand.run)
        self.forget([errand.decision.key for errand in cut])

    def _remember(self) -> None:
        """Note what has been begun; where that fails a restart of the agent may run a command once more."""
        try:
            write_document(self._actions.store.state, COMMANDS, {"begun": sorted(self.begun)})
        except (NodeAgentError, OSError) as error:
            self._log.error("step_failed", step="remember_commands", why=str(error))

    def _end(self, errand: _Errand, run: Run) -> None:
        run.close()
        if run.abandoned is not None:
            self._stuck.append(run)
            self.counts[errand.decision.command, "abandoned"] += 1
        if not errand.late:
            self._note(errand, run.outcome or Outcome(BROKEN, why="ended without a word of how"))

    def _note(self, errand: _Errand, outcome: Outcome) -> None:
        decision = errand.decision
        word = "failed" if outcome.kind == ENDED and not outcome.is_fine else outcome.kind
        self.counts[decision.command, word] += 1
        why = outcome.told(errand.program.timeout)
        about = {"command": decision.command, "gpu_uuid": decision.unit, "check": decision.finding.check, "why": why}
        if outcome.is_fine:
            self._log.info("command_ended", **about)
        else:
            self._log.error("command_failed", **about)
        story = f"{decision.command}: {why}; run for {decision.finding.evidence}"
        self._actions.deed(COMMAND, decision.unit, story, after=DONE if outcome.is_fine else FAILED)


def document(decision: RunCommand, node: str, at: float) -> dict[str, Any]:
    """Return what a command reads on standard input."""
    return {
        **schema("command"),
        "time": iso(at),
        "node": node,
        "command": decision.command,
        "do": decision.do,
        **plain_finding(decision.finding),
        "gpu": None if decision.about is None else plain_unit(decision.about),
        "findings": [plain_finding(finding) for finding in decision.findings],
        "bad_gpus": decision.bad_units,
    }
