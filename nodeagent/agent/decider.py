"""From a verdict to what is done about it: asks the scheduler seldom, carries decisions out, counts and says them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

from nodeagent.agent.actions import DrainRefused, LimitReached, NotRecorded
from nodeagent.agent.errand import AtOnce, Errands
from nodeagent.agent.journal import Log
from nodeagent.agent.pace import Pace
from nodeagent.agent.waiting import Waiting
from nodeagent.clock import Clock
from nodeagent.config.model import Config
from nodeagent.errors import CommandFailed, NodeAgentError
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
    is_certain,
    signed,
    wanted_drain,
)
from nodeagent.report import iso
from nodeagent.scheduler.port import Scheduler
from nodeagent.scheduler.trouble import diagnose
from nodeagent.scheduler.turn import NotOurTurn
from nodeagent.state.verdict_file import UNKNOWN

ASK_AGAIN = 6
"""Cycles between two looks at the scheduler while nothing changes: a thousand nodes may be in this state at once."""


class DrainRecords(Protocol):
    """What is recorded of our own drain (agent/records.py: Records)."""

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

    def busy(self) -> bool:
        """Say whether a job holds a unit of the node; of a lock that cannot be read it does."""

    def maintenance(self) -> object | None:
        """Return the maintenance that stands: then nothing is carried out."""

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
    """Acts on verdicts. Remembers what it has asked and said, and how long it has been looking.

    `node` is the name in the reasons of drains. What has to do with the scheduler is an errand: the cycle does not wait
    for it.
    """

    def __init__(
        self,
        config: Config,
        actions: Means,
        commands: Commands,
        clock: Clock,
        log: Log,
        node: str = "",
        errands: Errands | None = None,
    ) -> None:
        self.config = config
        self.actions = actions
        self.commands = commands
        self.waiting = Waiting(actions, clock, log)
        self._node = node
        self._errands = errands or AtOnce()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.unexplained: set[str] = set()
        """Units retired in this boot for what nothing is remembered of: they do not come back by themselves."""
        self._clock = clock
        self._log = log
        self._cycles = 0
        self.pace = Pace(clock, ASK_AGAIN * config.interval)
        self._adopted = False
        self._refusal = ""
        self._resting = False
        self._said: set[Decision] = set()
        self._said_of_node: set[Decision] = set()
        self._of_node: list[Decision] = []
        self._wanted: Drain | None = None

    def successor(self, config: Config, actions: Means, commands: Commands) -> Decider:
        """Return the one that goes on with another configuration."""
        new = Decider(config, actions, commands, self._clock, self._log, self._node, self._errands)
        new.waiting = self.waiting.successor(actions)
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
        resting, self._resting = self._resting, self.actions.maintenance() is not None
        if resting and not self._resting:
            self.look()  # what became due meanwhile is done now
        self._attempt("publish_retired", self.actions.publish_retired)
        retired = self.actions.retired()
        due: set[Decision] = set()
        for decision in decide_units(verdict, retired, self.config.policy):
            if not isinstance(decision, Restore) or (
                decision.unit not in soiled and self._may_return(verdict, decision.unit, retired[decision.unit])
            ):
                due.add(decision)
                self._do(decision, self._said)
        self._act_on_node(verdict)
        due.update(self._act_on_commands(verdict))
        self._said &= due

    def look(self) -> None:
        """Ask the scheduler in the next cycle: somebody may have changed what it knows of the node."""
        self.pace.again()

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
            self._nothing_waits()
            if self._adopted and self.waiting.trouble is None:
                self._of_node = []
                self._said_of_node.clear()
                return
        if self._errands.busy:
            return
        busy = wanted is not None and wanted.when_idle and self._busy()
        states = (verdict.node_state, settled, *(unit.state for unit in verdict.units))
        question = (wanted and (wanted.action, wanted.when_idle, busy), record, states)
        if not self.pace.allows(question):
            return  # still due, for all that is known
        self._errands.run(lambda: self._settle(wanted, verdict, settled, busy))

    def _settle(self, wanted: Drain | None, verdict: Verdict, settled: bool, busy: bool) -> None:
        """Ask the scheduler how it has the node and do what that asks for; `busy` while a job holds a unit."""
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
        steps = list(decide_node(wanted, record, node, verdict, busy))
        if not any(isinstance(step, Drain) for step in steps):
            self._nothing_waits()
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
        self.pace.failed()
        if isinstance(error, NodeAgentError):
            drain = wanted if self._wanted is not None and not self.config.policy.dry_run else None
            self.waiting.failed(diagnose(error), drain.reason if drain is not None else "")

    def _put(self, record: DrainRecord) -> DrainRecord:
        if not self.config.policy.dry_run:
            self._attempt("record", lambda: self.actions.records.put_drain(record))
        return record

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
                self._do(decision, self._said)

    def _adopt(self, reason: str) -> DrainRecord | None:
        """Take up a drain of ours that stands without a record, as on a node that keeps nothing over a reboot."""
        record = adopted(reason)
        return self._put(record) if record is not None else None

    def _do(self, decision: Decision, said: set[Decision]) -> Exception | None:
        """Carry a decision out; return what failed. `said` are those that it has told of and not carried out."""
        word, fields = _words(decision)
        if self.config.policy.dry_run:
            self._only_say(decision, said, word, DRY_RUN, {"dry_run": True, **fields})
            return None
        if self.actions.maintenance() is not None:
            self._only_say(decision, said, word, WAITS, {"waits": True, **fields})
            return None
        if isinstance(decision, AwaitIdle):
            self._only_say(decision, said, "drain_waits", WAITS, fields)
            return None
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
            return error
        else:
            self._done(word, fields)
        return None

    def _only_say(
        self, decision: Decision, said: set[Decision], event: str, result: str, fields: Mapping[str, object]
    ) -> None:
        """Say once of a decision that it is not carried out, as long as it stands."""
        if decision not in said:
            said.add(decision)
            word, about = _words(decision)
            self.counts[word, result] += 1
            self._log.warning(event, **fields)
            self._tell(word, about, result)

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
        elif isinstance(decision, RunCommand):
            self.commands.begin(decision)


def _words(decision: Decision) -> tuple[str, dict[str, str]]:
    """Return the kind of a decision and its fields, as the journal has them."""
    word, fields = "resume", dict[str, str]()
    if isinstance(decision, Retire):
        word, fields = "retire", {"gpu_uuid": decision.unit, "check": decision.check, "why": decision.reason}
    elif isinstance(decision, Restore):
        word, fields = "restore", {"gpu_uuid": decision.unit}
    elif isinstance(decision, (Drain, AwaitIdle)):
        word, fields = "drain", {"why": decision.reason}
    elif isinstance(decision, RunCommand):
        found = decision.finding
        about = {"gpu_uuid": decision.unit, "command": decision.command, "check": found.check}
        word, fields = "run_command", {**about, "why": f"{decision.command} for {found.evidence}"}
    elif isinstance(decision, Raise):
        word, fields = "raise_drain", {"why": f"needs {decision.action.word}"}
    elif isinstance(decision, ForgetDrain):
        why = "somebody has resumed the node; it is drained again only if a fault shows again"
        word, fields = "forget_drain", {"why": why} if decision.faults else {}
    return word, fields
