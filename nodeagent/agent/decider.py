"""From a verdict to what is done about it: asks the scheduler seldom, carries decisions out, counts and says them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Protocol

from nodeagent.agent.actions import DrainRefused, NotRecorded
from nodeagent.agent.errand import AtOnce, Errands
from nodeagent.agent.journal import Log
from nodeagent.agent.waiting import Waiting
from nodeagent.clock import Clock
from nodeagent.config.model import Config
from nodeagent.errors import CommandFailed, NodeAgentError
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
    is_certain,
    signed,
    wanted_drain,
)
from nodeagent.report import iso
from nodeagent.scheduler.port import Scheduler
from nodeagent.scheduler.trouble import diagnose

ASK_AGAIN = 6
"""Cycles between two looks at the scheduler while nothing changes: a thousand nodes may be in this state at once."""


class DrainRecords(Protocol):
    """What is recorded of our own drain (agent/actions.py: Records)."""

    def drain(self) -> DrainRecord | None:
        """Return our own drain, if there is one."""

    def put_drain(self, record: DrainRecord) -> None:
        """Record it."""

    def memo(self, name: str) -> Mapping[str, str]:
        """Return what is noted under PENDING or RESUMED; empty: nothing."""

    def put_memo(self, name: str, fields: Mapping[str, str]) -> None:
        """Note it; empty fields remove it."""


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

    def forget_drain(self, faults: Collection[str] = ()) -> None:
        """Drop the record of a drain that stands no more; these faults ask for no other one while they stand still."""

    def deed(self, kind: str, unit: str, why: str, *, after: str) -> None:
        """Tell of what came of a decision that was not carried out."""


class Decider:
    """Acts on verdicts. Remembers what it has asked and said, and how long it has been looking.

    `node` is the name in the reasons of drains. What has to do with the scheduler is an errand: the cycle does not wait
    for it.
    """

    def __init__(
        self,
        config: Config,
        actions: Means,
        clock: Clock,
        log: Log,
        node: str = "",
        errands: Errands | None = None,
    ) -> None:
        self.config = config
        self.actions = actions
        self.waiting = Waiting(actions, clock, log)
        self._node = node
        self._errands = errands or AtOnce()
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
        self._said_of_node: set[Decision] = set()
        self._of_node: list[Decision] = []
        self._wanted: Drain | None = None

    def successor(self, config: Config, actions: Means) -> Decider:
        """Return the one that goes on with another configuration."""
        new = Decider(config, actions, self._clock, self._log, self._node, self._errands)
        new.waiting = self.waiting.successor(actions)
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
                self._do(decision, self._said)
        self._said &= due
        self._act_on_node(verdict)

    def look(self) -> None:
        """Ask the scheduler in the next cycle: somebody may have changed what it knows of the node."""
        self._asked = (None, float("-inf"))

    def _may_return(self, verdict: Verdict, unit: str, record: Mapping[str, str]) -> bool:
        """Say whether a unit that looks well may come back: looked at often enough, and nothing about it forgotten."""
        if unit in self.unexplained and record.get("boot_id") == verdict.boot_id:
            return False
        return self._cycles > self.config.health.recover

    def _act_on_node(self, verdict: Verdict) -> None:
        # read again: a unit that was just retired or restored counts already
        retired = self.actions.retired()
        wanted = wanted_drain(verdict, self.config.policy, self.actions.scheduler.spares_units, retired)
        settled = self._cycles > self.config.health.recover
        if settled and is_certain(verdict):
            self.waiting.stands(wanted.faults if wanted is not None else frozenset())
        if wanted is not None and self.waiting.is_waived(wanted.faults):
            wanted = None
        if wanted is None:
            self.waiting.over()
        self._wanted = wanted
        record = self.actions.records.drain()
        if wanted is None and record is None:
            self._refusal = ""
            if self._adopted and self.waiting.trouble is None:
                self._of_node = []
                self._said_of_node.clear()
                return
        if self._errands.busy:
            return
        states = (verdict.node_state, settled, *(unit.state for unit in verdict.units))
        question = (wanted.action if wanted is not None else None, record, states)
        now = self._clock.monotonic()
        if now < self.waiting.until:
            return
        if question == self._asked[0] and now - self._asked[1] < ASK_AGAIN * self.config.interval:
            return  # still due, for all that is known
        self._asked = (question, now)
        self._errands.run(lambda: self._settle(wanted, verdict, settled))

    def _settle(self, wanted: Drain | None, verdict: Verdict, settled: bool) -> None:
        """Ask the scheduler how it has the node and do what that asks for."""
        if wanted is not None:
            seen = self._clock.wall() - (self._clock.monotonic() - wanted.since)
            wanted = signed(wanted, self._node, iso(seen))
        try:
            node = self.actions.scheduler.node_state()
        except NodeAgentError as error:
            self._failed("ask", error)
            self._postpone(wanted, error)
            return
        self.waiting.answered()
        if (self._wanted is None) != (wanted is None):
            self.look()  # the answer took so long that it is about another decision
            return
        record = self.actions.records.drain()
        if record is None and node.drained:
            record = self._adopt(node.reason or "")
        elif record is not None and not record.stands and node.drained and not node.foreign:
            record = self._put(replace(record, stands=True))
        self._adopted = True
        steps = decide_node(wanted, record, node, verdict)
        self._of_node = [step for step in steps if settled or not isinstance(step, Resume)]
        self._said_of_node &= set(self._of_node)
        for step in self._of_node:
            failure = self._do(step, self._said_of_node)
            if failure is not None:
                self._postpone(wanted, failure)
                return
        if wanted is not None:
            self.waiting.settled()

    def _postpone(self, wanted: Drain | None, error: Exception) -> None:
        """Try again later; what was wanted is noted until then."""
        if isinstance(error, NodeAgentError):
            drain = wanted if self._wanted is not None and not self.config.policy.dry_run else None
            self.waiting.failed(diagnose(error), self.config.interval, drain.reason if drain is not None else "")

    def _put(self, record: DrainRecord) -> DrainRecord:
        if not self.config.policy.dry_run:
            self._attempt("record", lambda: self.actions.records.put_drain(record))
        return record

    def _adopt(self, reason: str) -> DrainRecord | None:
        """Take up a drain of ours that stands without a record, as on a node that keeps nothing over a reboot."""
        record = adopted(reason)
        return self._put(record) if record is not None else None

    def _do(self, decision: Decision, said: set[Decision]) -> Exception | None:
        """Carry a decision out; return what failed. `said` are those that a dry run has told of."""
        word, fields = _words(decision)
        if self.config.policy.dry_run:
            if decision not in said:
                said.add(decision)
                self.counts[word, "dry-run"] += 1
                self._log.warning(word, dry_run=True, **fields)
                self._tell(word, fields, DRY_RUN)
            return None
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
            return error
        else:
            self._done(word, fields)
        return None

    def _done(self, word: str, fields: Mapping[str, str]) -> None:
        self._refusal = ""
        self.counts[word, "done"] += 1
        self._log.warning(word, **fields)

    def _tell(self, word: str, fields: Mapping[str, str], result: str) -> None:
        self.actions.deed(word, fields.get("gpu_uuid", ""), fields.get("why", ""), after=result)

    def _failed(self, word: str, error: Exception) -> None:
        self.counts[word, "failed"] += 1
        remedy = {"remedy": diagnose(error).remedy} if isinstance(error, CommandFailed) else {}
        self._log.error("action_failed", action=word, why=str(error), **remedy)

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
            actions.forget_drain(decision.faults)


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
    if isinstance(decision, ForgetDrain) and decision.faults:
        return "forget_drain", {"why": "somebody has resumed the node; it is drained again only if a fault shows again"}
    return ("resume" if isinstance(decision, Resume) else "forget_drain"), {}
