"""From a verdict to what is done about it: asks the scheduler seldom, carries decisions out, counts and says them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Protocol

from nodeagent.agent.actions import DrainRefused, LimitReached, NotRecorded
from nodeagent.agent.journal import Log
from nodeagent.agent.pace import Pace
from nodeagent.clock import Clock
from nodeagent.config.model import Config
from nodeagent.errors import NodeAgentError
from nodeagent.health.finding import RecoveryAction
from nodeagent.health.verdict import Verdict
from nodeagent.history.entry import DRY_RUN, REFUSED
from nodeagent.policy.decide import (
    Decision,
    Drain,
    DrainRecord,
    ForgetDrain,
    Raise,
    Restore,
    Resume,
    Retire,
    adopted,
    decide_node,
    decide_units,
    wanted_drain,
)
from nodeagent.scheduler.port import Scheduler
from nodeagent.scheduler.turn import NotOurTurn

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


class Decider:
    """Acts on verdicts. Remembers what it has asked and said, and how long it has been looking."""

    def __init__(self, config: Config, actions: Means, clock: Clock, log: Log) -> None:
        self.config = config
        self.actions = actions
        self.counts: Counter[tuple[str, str]] = Counter()
        self.unexplained: set[str] = set()
        """Units retired in this boot for what nothing is remembered of: they do not come back by themselves."""
        self._clock = clock
        self._log = log
        self._cycles = 0
        self.pace = Pace(clock, ASK_AGAIN * config.interval)
        self._adopted = False
        self._refusal = ""
        self._said: set[Decision] = set()
        self._of_node: list[Decision] = []

    def successor(self, config: Config, actions: Means) -> Decider:
        """Return the one that goes on with another configuration."""
        new = Decider(config, actions, self._clock, self._log)
        new.counts, new.unexplained = self.counts, self.unexplained
        new._cycles, new._adopted = self._cycles, self._adopted
        return new

    @property
    def drain_waits(self) -> str:
        """Why a drain that is wanted is put off; empty where none is."""
        return self._refusal if any(isinstance(step, Drain) for step in self._of_node) else ""

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
            self._nothing_waits()
            if self._adopted:
                self._of_node = []
                return
        settled = self._cycles > self.config.health.recover
        states = (verdict.node_state, settled, *(unit.state for unit in verdict.units))
        question = (wanted.action if wanted is not None else None, record, states)
        if not self.pace.allows(question):
            yield from self._of_node  # still due, for all that is known
            return
        try:
            node = self.actions.scheduler.node_state()
        except NodeAgentError as error:
            self._failed("ask", error)
            self.pace.failed()
            return
        if record is None and node.drained:
            record = self._adopt(node.reason or "")
        self._adopted = True
        self._of_node = []
        steps = list(decide_node(wanted, record, node, verdict))
        if not any(isinstance(step, Drain) for step in steps):
            self._nothing_waits()
        for step in steps:
            if not isinstance(step, Resume) or settled:
                self._of_node.append(step)
                yield step
                self._do(step)

    def _adopt(self, reason: str) -> DrainRecord | None:
        """Take up a drain of ours that stands without a record, as on a node that keeps nothing over a reboot."""
        record = adopted(reason)
        if record is not None and not self.config.policy.dry_run:
            self._attempt("adopt", lambda: self.actions.records.put_drain(record))
        return record

    def _do(self, decision: Decision) -> None:
        word, fields = _words(decision)
        if self.config.policy.dry_run:
            if decision not in self._said:
                self._said.add(decision)
                self.counts[word, "dry-run"] += 1
                self._log.warning(word, dry_run=True, **fields)
                self._tell(word, fields, DRY_RUN)
            return
        try:
            self._carry_out(decision)
        except NotOurTurn as error:
            self.counts[word, "waiting"] += 1
            if str(error) != self._refusal:
                self._log.warning("drain_waits", note=str(error), **fields)
            self._refusal = str(error)
            self.pace.not_our_turn()
        except DrainRefused as error:
            self.counts[word, "refused"] += 1
            if str(error) != self._refusal:
                self._log.error("drain_refused", note=str(error), **fields)
                self._tell(word, {"why": f"{error}: {fields.get('why', '')}"}, REFUSED)
            self._refusal = str(error)
            if isinstance(error, LimitReached):
                self.pace.full(error.nodes)
        except NotRecorded as error:
            self._done(word, fields)
            self._log.error("not_recorded", why=str(error))
        except (NodeAgentError, OSError) as error:
            self._adopted = False  # it may take effect all the same: look again, also when all is well by then
            self._failed(word, error)
            if isinstance(decision, (Drain, Resume)):
                self._refusal = str(error)
                self.pace.failed()
        else:
            self._done(word, fields)

    def _done(self, word: str, fields: Mapping[str, str]) -> None:
        if word == "drain":
            self._nothing_waits()
        self.counts[word, "done"] += 1
        self._log.warning(word, **fields)

    def _nothing_waits(self) -> None:
        self._refusal = ""
        self.pace.calm()

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


def _words(decision: Decision) -> tuple[str, dict[str, str]]:
    """Return the kind of a decision and its fields, as the journal has them."""
    if isinstance(decision, Retire):
        return "retire", {"gpu_uuid": decision.unit, "check": decision.check, "why": decision.reason}
    if isinstance(decision, Restore):
        return "restore", {"gpu_uuid": decision.unit}
    if isinstance(decision, Drain):
        return "drain", {"why": decision.reason}
    if isinstance(decision, Raise):
        return "raise_drain", {"why": f"needs {decision.action.word}"}
    return ("resume" if isinstance(decision, Resume) else "forget_drain"), {}
