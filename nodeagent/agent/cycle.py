"""One cycle: take up events, read facts, judge, tell hooks, decide, act, publish."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace

from nodeagent.agent.actions import Actions, DrainRefused
from nodeagent.agent.journal import Log
from nodeagent.agent.publish import verdict_file
from nodeagent.clock import Clock
from nodeagent.config.model import Config
from nodeagent.drivers.site_set import bind_list
from nodeagent.errors import NodeAgentError, UnknownFormat
from nodeagent.gpu.facts import GpuSource, NodeFacts, XidEvent
from nodeagent.health.memory import Memory, clear, from_plain, to_plain
from nodeagent.health.verdict import Verdict, judge
from nodeagent.lock.reconcile import gone
from nodeagent.policy.decide import (
    Drain,
    ForgetDrain,
    Restore,
    Resume,
    Retire,
    decide_node,
    decide_units,
    wanted_drain,
)
from nodeagent.report import published
from nodeagent.scheduler.port import Scheduler
from nodeagent.snapshot import Counters, Snapshot
from nodeagent.state import events
from nodeagent.state.boot import start_time
from nodeagent.state.documents import MEMORY, SNAPSHOT, read_document, write_document
from nodeagent.state.files import Directory
from nodeagent.state.verdict_file import VERDICT

_ASK_AGAIN = 6  # cycles between two looks at the scheduler, and at the driver set, while nothing changes
_QUIET_EVENTS = ("grant", "release")
RESTORED_BY_HAND = "restored_by_hand"  # the event by which `restore` tells the agent to forget latched XIDs


@dataclass
class Ports:
    """What a cycle touches outside itself."""

    state: Directory
    source: GpuSource
    scheduler: Scheduler
    actions: Actions
    clock: Clock
    log: Log


class Cycle:
    """The agent's work, one `run` after the other. Holds what has to be remembered from one to the next."""

    def __init__(self, config: Config, node: str, version: str, ports: Ports) -> None:
        self.config = config
        self.node = node
        self.version = version
        self.ports = ports
        self.memory = Memory()
        self.snapshot: Snapshot | None = None
        self._xids: list[XidEvent] = []
        self._counts = _Counts()
        self._binds = ("", "", float("-inf"))
        self._asked: tuple[object, float] = (None, float("-inf"))
        self._refusal = ""

    @property
    def interval(self) -> float:
        """Seconds between the beginnings of two cycles."""
        return self.config.interval

    def begin(self) -> None:
        """Make hooks see what was retired before this boot, and take up what an agent before this one remembered."""
        self.ports.actions.publish_retired()
        remembered = read_document(self.ports.state, MEMORY)
        if remembered is not None:
            try:
                self.memory = from_plain(remembered)
            except UnknownFormat as error:
                self.ports.log.error("memory_unreadable", why=str(error))

    def end(self) -> None:
        """Let go of the probe."""
        self.ports.source.close()

    def fileno(self) -> int:
        """Return the descriptor that wakes the agent when an XID comes."""
        return self.ports.source.fileno()

    def witnessed(self) -> bool:
        """Take up what woke the agent; True if XIDs wait for the next cycle (most lines of a kernel log are none)."""
        self._xids += self.ports.source.take_xids()
        return bool(self._xids)

    def successor(self, config: Config, ports: Ports) -> Cycle:
        """Return the cycle that goes on with another configuration and all that this one remembers."""
        new = Cycle(config, self.node, self.version, ports)
        new.memory = self.memory
        new.snapshot = self.snapshot
        new._counts = self._counts
        new._xids = self._xids
        return new

    def run(self) -> Snapshot:
        """Do one cycle and return what it publishes."""
        clock = self.ports.clock
        started = clock.monotonic()
        self._take_events()
        facts = self.ports.source.sample()
        self.witnessed()
        facts = replace(facts, xids=tuple(self._xids))
        self._xids = []
        previous = self.snapshot.verdict if self.snapshot is not None else None
        verdict, self.memory = judge(self.memory, facts, self.config.health)
        self._note(facts, previous, verdict)
        self._tell_hooks(verdict, facts)
        self._reconcile(facts.boot_id)
        self._act(verdict)
        record = self.ports.actions.records.drain()
        self.snapshot = Snapshot(
            node=self.node,
            pid=os.getpid(),
            interval=self.config.interval,
            monotonic=clock.monotonic(),
            wall=clock.wall(),
            facts=facts,
            verdict=verdict,
            retired=self.ports.actions.store.retired(),
            drain_reason=record.reason if record is not None else "",
            counters=self._counts.frozen(events.dropped(self.ports.state), self.ports.source),
            cycle_seconds=clock.monotonic() - started,
            version=self.version,
        )
        write_document(self.ports.state, SNAPSHOT, published(self.snapshot))
        write_document(self.ports.state, MEMORY, to_plain(self.memory))
        return self.snapshot

    def summary(self) -> str:
        """Return one line for `systemctl status`."""
        if self.snapshot is None:
            return "no verdict yet"
        states = Counter(unit.state for unit in self.snapshot.verdict.units)
        parts = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "no GPUs"
        return parts + (f"; drained: {self.snapshot.drain_reason}" if self.snapshot.drain_reason else "")

    # -- the steps ----------------------------------------------------------------------------------------------------

    def _take_events(self) -> None:
        for event in events.take(self.ports.state):
            self._counts.hook_events[event.kind] += 1
            if event.kind == RESTORED_BY_HAND:
                self.memory = clear(self.memory, event.fields.get("units", ""))
            say = self.ports.log.debug if event.kind in _QUIET_EVENTS else self.ports.log.warning
            say("hook", kind=event.kind, **event.fields)

    def _note(self, facts: NodeFacts, previous: Verdict | None, verdict: Verdict) -> None:
        """Log and count what is new."""
        for xid in facts.xids:
            self._counts.xids[xid.uuid, xid.xid] += 1
            self.ports.log.warning("xid", gpu_uuid=xid.uuid, xid=xid.xid, seen_by=xid.source)
        before = {unit.uuid: unit.state for unit in previous.units} if previous is not None else {}
        for unit in verdict.units:
            if before.get(unit.uuid, "OK") != unit.state:
                why = "; ".join(reason.evidence for reason in unit.reasons)
                check = unit.reasons[0].check if unit.reasons else ""
                self.ports.log.warning(
                    "verdict_changed", gpu_uuid=unit.uuid, check=check, verdict=unit.state, index=unit.index, why=why
                )
        node_before = previous.node_state if previous is not None else "OK"
        if node_before != verdict.node_state:
            why = "; ".join(finding.evidence for finding in verdict.node_findings)
            self.ports.log.warning("verdict_changed", node=self.node, verdict=verdict.node_state, why=why)

    def _tell_hooks(self, verdict: Verdict, facts: NodeFacts) -> None:
        now = self.ports.clock.monotonic()
        version, binds, at = self._binds
        if version != facts.driver or now - at >= _ASK_AGAIN * self.interval:
            binds = bind_list(self.config.drivers, facts.driver)
            self._binds = (facts.driver, binds, now)
        file = verdict_file(verdict, facts, os.getpid(), self.config.interval, binds)
        self.ports.state.replace(VERDICT, file.encode())

    def _reconcile(self, boot_id: str) -> None:
        store = self.ports.actions.store
        if not gone(store.owners(), boot_id, start_time):
            return
        with store.exclusive():  # looked at again under the flock: what was gone a moment ago may be a new grant now
            store.sweep()
            over = gone(store.owners(), boot_id, start_time)
            freed = store.release(lambda owner: owner.grant in over)
        for unit, owner in freed.items():
            self.ports.log.warning(
                "lock_reconciled", gpu_uuid=unit, job=owner.job, owner=str(owner), why=over[owner.grant]
            )

    def _act(self, verdict: Verdict) -> None:
        retired = self.ports.actions.records.retired()
        for decision in decide_units(verdict, retired, self.config.policy):
            if isinstance(decision, Retire):
                self._do("retire", decision, gpu_uuid=decision.unit, check=decision.check, why=decision.reason)
            else:
                self._do("restore", decision, gpu_uuid=decision.unit)
        wanted = wanted_drain(verdict, self.config.policy, self.ports.scheduler.spares_units)
        record = self.ports.actions.records.drain()
        if wanted is None and record is None:
            self._refusal = ""
            return
        # The controller is asked when something has changed, else seldom: many nodes may be in this state at once.
        now = self.ports.clock.monotonic()
        states = (verdict.node_state, *(unit.state for unit in verdict.units))
        question = (wanted.reason if wanted is not None else None, record, states)
        if question == self._asked[0] and now - self._asked[1] < _ASK_AGAIN * self.interval:
            return
        self._asked = (question, now)
        try:
            node = self.ports.scheduler.node_state()
        except NodeAgentError as error:
            self._failed("ask", error)
            return
        for step in decide_node(wanted, record, node, verdict):
            words = {Drain: "drain", Resume: "resume", ForgetDrain: "forget_drain"}
            self._do(words[type(step)], step, **({"why": step.reason} if isinstance(step, Drain) else {}))

    def _do(self, word: str, decision: Retire | Restore | Drain | Resume | ForgetDrain, **fields: str) -> None:
        """Carry one decision out, count it and say so; what fails is tried again in the next cycle."""
        if self.config.policy.dry_run:
            self._counts.decisions[word, "dry-run"] += 1
            self.ports.log.warning(word, dry_run=True, **fields)
            return
        try:
            self._carry_out(decision)
        except DrainRefused as error:
            self._counts.decisions[word, "refused"] += 1
            if str(error) != self._refusal:
                self.ports.log.error("drain_refused", note=str(error), **fields)
            self._refusal = str(error)
        except (NodeAgentError, OSError) as error:
            self._failed(word, error)
        else:
            self._refusal = ""
            self._counts.decisions[word, "done"] += 1
            self.ports.log.warning(word, **fields)

    def _failed(self, word: str, error: Exception) -> None:
        self._counts.decisions[word, "failed"] += 1
        self.ports.log.error("action_failed", action=word, why=str(error))

    def _carry_out(self, decision: Retire | Restore | Drain | Resume | ForgetDrain) -> None:
        actions = self.ports.actions
        if isinstance(decision, Retire):
            actions.retire(decision.unit, decision.reason, decision.check, decision.action)
        elif isinstance(decision, Restore):
            actions.restore(decision.unit)
        elif isinstance(decision, Drain):
            actions.drain(decision.reason, decision.action)
        elif isinstance(decision, Resume):
            actions.resume()
        else:
            actions.records.drop_drain()


class _Counts:
    """What is counted from start to end."""

    def __init__(self) -> None:
        self.xids: Counter[tuple[str, int]] = Counter()
        self.hook_events: Counter[str] = Counter()
        self.decisions: Counter[tuple[str, str]] = Counter()

    def frozen(self, dropped: int, source: GpuSource) -> Counters:
        return Counters(
            dict(self.xids),
            dict(self.hook_events),
            dropped,
            dict(self.decisions),
            getattr(source, "timeouts", 0),
            getattr(source, "crashes", 0),
            getattr(source, "abandoned", 0),
        )
