"""From a verdict to what is done about it: asks the scheduler seldom, carries decisions out, counts and says them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Protocol

from nodeagent.agent.actions import DrainRefused, NotRecorded
from nodeagent.agent.journal import Log
from nodeagent.clock import Clock
from nodeagent.config.model import Config
from nodeagent.errors import NodeAgentError
from nodeagent.health.finding import RecoveryAction
from nodeagent.health.verdict import Verdict
from nodeagent.history.entry import DRY_RUN, REFUSED, WAITS
from nodeagent.policy.decide import (
    AwaitIdle,
    Decision,
    Drain,
    DrainRecord,
    ForgetDrain,
    Raise,
    Restore,
    Resume,
    Retire,
    RunCommand,
    adopted,
    decide_commands,
    decide_node,
    decide_units,
    wanted_drain,
)
from nodeagent.scheduler.port import Scheduler
from nodeagent.state.verdict_file import UNKNOWN

ASK_AGAIN = 6
"""Cycles between two looks at the scheduler while nothing changes: a thousand nodes may be in this state at once."""


class DrainRecords(Protocol):
    """What is recorded of our own drain (agent/actions.py: Records)."""

    def drain(self) -> DrainRecord | None:
        """Return our own drain, if there is one."""

    def put_drain(self, record: DrainRecord) -> None:
        """Record it."""


class Means(Protocol):
    """How decisions are carried out: agent/actions.py on a node, replay/node.py on one that is only remembered."""

    @property
    def records(self) -> DrainRecords:
        """What outlives a reboot."""

    @property
    def scheduler(self) -> Scheduler:
        """Who sends jobs here."""

    def busy(self) -> bool:
        """Say whether a job holds a unit of the node; of a lock that cannot be read it does."""

    def publish_retired(self) -> None:
        """Make what hooks see and what is recorded the same."""

    def retired(self) -> Mapping[str, Mapping[str, str]]:
        """Return unit → record of all that is retired."""

    def retire(self, unit: str, reason: str, check: str, action: RecoveryAction) -> None:
        """Grant the unit no more."""

    def restore(self, unit: str) -> object:
        """Grant the unit again."""

    def drain(self, reason: str, action: RecoveryAction) -> None:
        """Drain the node."""

    def raise_drain(self, action: RecoveryAction) -> None:
        """Note that the drained node needs more than was known then."""

    def resume(self) -> None:
        """Give the node back."""

    def forget_drain(self) -> None:
        """Drop the record of a drain that stands no more."""

    def deed(self, kind: str, unit: str, why: str, *, after: str) -> None:
        """Tell of what came of a decision that was not carried out."""


class Commands(Protocol):
    """The site's commands (agent/site_commands.py on a node): which have been begun, by RunCommand's keys."""

    @property
    def begun(self) -> Collection[tuple[str, str]]:
        """Those that are not to be begun again."""

    def begin(self, decision: RunCommand) -> None:
        """Have one run, and wait for nothing."""

    def forget(self, keys: Collection[tuple[str, str]]) -> None:
        """Begin these anew when they are wanted again."""


class Decider:
    """Acts on verdicts. Remembers what it has asked and said, and how long it has been looking."""

    def __init__(self, config: Config, actions: Means, commands: Commands, clock: Clock, log: Log) -> None:
        self.config = config
        self.actions = actions
        self.commands = commands
        self.counts: Counter[tuple[str, str]] = Counter()
        self.unexplained: set[str] = set()
        """Units retired in this boot for what nothing is remembered of: they do not come back by themselves."""
        self._clock = clock
        self._log = log
        self._cycles = 0
        self._asked: tuple[object, float] = (None, float("-inf"))
        self._adopted = False
        self._refusal = ""
        self._said: set[Decision] = set()
        self._of_node: list[Decision] = []

    def successor(self, config: Config, actions: Means, commands: Commands) -> Decider:
        """Return the one that goes on with another configuration."""
        new = Decider(config, actions, commands, self._clock, self._log)
        new.counts, new.unexplained = self.counts, self.unexplained
        new._cycles, new._adopted = self._cycles, self._adopted
        return new

    def act(self, verdict: Verdict, soiled: Collection[str] = (), looked: bool = True) -> None:
        """Do what the verdict asks for; what fails is tried again in a later cycle.

        `soiled` units have something of a job on them: they do not come back, however well they look. `looked` says
        that GPUs were asked in this cycle.
        """
        self._cycles += looked
        self._attempt("publish_retired", self.actions.publish_retired)
        retired = self.actions.retired()
        due: set[Decision] = set()
        for decision in decide_units(verdict, retired, self.config.policy):
            if not isinstance(decision, Restore) or (
                decision.unit not in soiled and self._may_return(verdict, decision.unit, retired[decision.unit])
            ):
                due.add(decision)
                self._do(decision)
        due.update(self._act_on_node(verdict))
        due.update(self._act_on_commands(verdict))
        self._said &= due

    def _may_return(self, verdict: Verdict, unit: str, record: Mapping[str, str]) -> bool:
        """Say whether a unit that looks well may come back: looked at often enough, and nothing about it forgotten."""
        if unit in self.unexplained and record.get("boot_id") == verdict.boot_id:
            return False
        return self._cycles > self.config.health.recover

    def _act_on_node(self, verdict: Verdict) -> Iterator[Decision]:
        # read again: a unit that was just retired or restored counts already
        retired = self.actions.retired()
        wanted = wanted_drain(verdict, self.config.policy, self.actions.scheduler.spares_units, retired)
        record = self.actions.records.drain()
        if wanted is None and record is None:
            self._refusal = ""
            if self._adopted:
                self._of_node = []
                return
        settled = self._cycles > self.config.health.recover
        busy = wanted is not None and wanted.when_idle and self._busy()
        states = (verdict.node_state, settled, *(unit.state for unit in verdict.units))
        question = (wanted and (wanted.action, wanted.when_idle, busy), record, states)
        now = self._clock.monotonic()
        if question == self._asked[0] and now - self._asked[1] < ASK_AGAIN * self.config.interval:
            yield from self._of_node  # still due, for all that is known
            return
        self._asked = (question, now)
        try:
            node = self.actions.scheduler.node_state()
        except NodeAgentError as error:
            self._failed("ask", error)
            return
        if record is None and node.drained:
            record = self._adopt(node.reason or "")
        self._adopted = True
        self._of_node = []
        for step in decide_node(wanted, record, node, verdict, busy):
            if not isinstance(step, Resume) or settled:
                self._of_node.append(step)
                yield step
                self._do(step)

    def _busy(self) -> bool:
        try:
            return self.actions.busy()
        except (NodeAgentError, OSError):  # the cleaner, which reads the same locks, says it in the log
            return True

    def _act_on_commands(self, verdict: Verdict) -> Iterator[Decision]:
        """Begin the site's commands that are wanted for the first time since the fault was seen.

        While nothing is known of a unit its fault is not over.
        """
        due = {decision.key: decision for decision in decide_commands(verdict, self.config.policy)}
        unknown = {unit.uuid for unit in verdict.units if unit.state == UNKNOWN}
        unknown |= {""} if verdict.node_state == UNKNOWN else set()
        over = {key for key in self.commands.begun if key not in due and key[1] not in unknown}
        self.commands.forget(over)
        for key, decision in due.items():
            yield decision
            if key not in self.commands.begun:
                self._do(decision)

    def _adopt(self, reason: str) -> DrainRecord | None:
        """Take up a drain of ours that stands without a record, as on a node that keeps nothing over a reboot."""
        record = adopted(reason)
        if record is not None and not self.config.policy.dry_run:
            self._attempt("adopt", lambda: self.actions.records.put_drain(record))
        return record

    def _do(self, decision: Decision) -> None:
        word, fields = _words(decision)
        if self.config.policy.dry_run:
            self._only_say(decision, word, DRY_RUN, {**fields, "dry_run": True})
            return
        if isinstance(decision, AwaitIdle):
            self._only_say(decision, "drain_waits", WAITS, fields)
            return
        try:
            self._carry_out(decision)
        except DrainRefused as error:
            self.counts[word, "refused"] += 1
            if str(error) != self._refusal:
                self._log.error("drain_refused", note=str(error), **fields)
                self._tell(word, {"why": f"{error}: {fields.get('why', '')}"}, REFUSED)
            self._refusal = str(error)
        except NotRecorded as error:
            self._done(word, fields)
            self._log.error("not_recorded", why=str(error))
        except (NodeAgentError, OSError) as error:
            self._adopted = False  # it may take effect all the same: look again, also when all is well by then
            self._failed(word, error)
        else:
            self._done(word, fields)

    def _only_say(self, decision: Decision, event: str, result: str, fields: Mapping[str, object]) -> None:
        """Say once of a decision that it is not carried out, as long as it stands."""
        if decision not in self._said:
            self._said.add(decision)
            word, about = _words(decision)
            self.counts[word, result] += 1
            self._log.warning(event, **fields)
            self._tell(word, about, result)

    def _done(self, word: str, fields: Mapping[str, str]) -> None:
        self._refusal = ""
        self.counts[word, "done"] += 1
        self._log.warning(word, **fields)

    def _tell(self, word: str, fields: Mapping[str, str], result: str) -> None:
        self.actions.deed(word, fields.get("gpu_uuid", ""), fields.get("why", ""), after=result)

    def _failed(self, word: str, error: Exception) -> None:
        self.counts[word, "failed"] += 1
        self._log.error("action_failed", action=word, why=str(error))

    def _attempt(self, word: str, action: Callable[[], object]) -> None:
        try:
            action()
        except (NodeAgentError, OSError) as error:
            self._failed(word, error)

    def _carry_out(self, decision: Decision) -> None:
        actions = self.actions
        if isinstance(decision, Retire):
            actions.retire(decision.unit, decision.reason, decision.check, decision.action)
        elif isinstance(decision, Restore):
            actions.restore(decision.unit)
        elif isinstance(decision, Drain):
            actions.drain(decision.reason, decision.action)
        elif isinstance(decision, Resume):
            actions.resume()
        elif isinstance(decision, Raise):
            actions.raise_drain(decision.action)
        elif isinstance(decision, ForgetDrain):
            actions.forget_drain()
        elif isinstance(decision, RunCommand):
            self.commands.begin(decision)


def _words(decision: Decision) -> tuple[str, dict[str, str]]:
    """Return the kind of a decision and its fields, as the journal has them."""
    if isinstance(decision, Retire):
        return "retire", {"gpu_uuid": decision.unit, "check": decision.check, "why": decision.reason}
    if isinstance(decision, Restore):
        return "restore", {"gpu_uuid": decision.unit}
    if isinstance(decision, (Drain, AwaitIdle)):
        return "drain", {"why": decision.reason}
    if isinstance(decision, RunCommand):
        found = decision.finding
        return "run_command", {
            **{"gpu_uuid": decision.unit, "command": decision.command, "check": found.check},
            "why": f"{decision.command} for {found.evidence}",
        }
    if isinstance(decision, Raise):
        return "raise_drain", {"why": f"needs {decision.action.word}"}
    return ("resume" if isinstance(decision, Resume) else "forget_drain"), {}
