"""One cycle: take up events, read facts, judge, tell hooks, decide, act, publish."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import inf

from nodeagent.agent.chronicle import Chronicle
from nodeagent.agent.cleaner import Cleaner
from nodeagent.agent.completer import Completer
from nodeagent.agent.counts import Counts
from nodeagent.agent.decider import ASK_AGAIN, Decider
from nodeagent.agent.driver_set import DriverSet
from nodeagent.agent.holder import HolderKeeper
from nodeagent.agent.lending import RELEASE_DRIVER, Lender, Lending, lending
from nodeagent.agent.ports import Ports
from nodeagent.agent.publish import slots_by_gpu, verdict_file
from nodeagent.agent.reconciler import Reconciler
from nodeagent.agent.repair import Repair
from nodeagent.agent.site_commands import SiteCommands
from nodeagent.agent.surroundings import Surroundings
from nodeagent.config.model import Config
from nodeagent.errors import NodeAgentError, StateGone
from nodeagent.gpu.facts import NodeFacts, XidEvent
from nodeagent.health.memory import Memory, clear, explains, from_plain, to_plain
from nodeagent.health.overheard import overheard
from nodeagent.health.scene import is_grave
from nodeagent.health.units import Instances, mig_instances
from nodeagent.health.verdict import Verdict, judge
from nodeagent.history.entry import BY_HAND, OFF
from nodeagent.report import published
from nodeagent.snapshot import Snapshot
from nodeagent.state import events, reruns
from nodeagent.state.documents import MEMORY, SNAPSHOT, read_document, write_document
from nodeagent.state.verdict_file import VERDICT, read_verdict

_DAY = 86400.0
_CONFLICT = "conflict"
_QUIET_EVENTS = ("grant", "release")
_EVENTS = ("xid", "ecc-uncorrected")
RESTORED_BY_HAND = "restored_by_hand"  # the event by which `restore` tells the agent to forget latched XIDs


class Cycle:
    """The agent's work, one `run` after the other. Holds what has to be remembered from one to the next."""

    def __init__(self, config: Config, node: str, version: str, ports: Ports) -> None:
        self.config = config
        self.node = node
        self.version = version
        self.ports = ports
        self.memory = Memory()
        self.snapshot: Snapshot | None = None
        self.chronicle = Chronicle(node, ports.actions.boot_id, ports.history, ports.clock, ports.log)
        self._xids: list[XidEvent] = []
        self._counts = Counts()
        self._swept: NodeFacts | None = None
        self._lender = Lender(ports.source, self.chronicle, ports.clock, ports.log)
        self._driver_set = DriverSet(config, ASK_AGAIN * config.interval, ports.clock, ports.log)
        self._tidied = float("-inf")
        self._tidy_pause = ASK_AGAIN * config.interval
        self._instances: Instances = {}
        self._lending = Lending()
        self._commands = SiteCommands(config, node, ports.actions, ports.clock, ports.log)
        self._repair = Repair(config, ports.actions, self._commands, self._lender, ports.clock, ports.log)
        self._decider = Decider(config, ports.actions, self._commands, ports.clock, ports.log, node, ports.errands)
        self._reconciler = Reconciler(ports.actions.store, ports.scheduler, ports.log, config.roots)
        self._completer = Completer(ports.state, ports.actions.store, ports.scheduler, ports.log)
        self._cleaner = Cleaner(config, ports.actions, ports.source, ports.clock, ports.log)
        self._surroundings = Surroundings(config, ports.actions.store, ports.clock)
        self._holders = _keeper(config, ports)
        self.clean_at = inf
        """When `clean` wants to be called again, by the clock's monotonic seconds."""

    @property
    def interval(self) -> float:
        """Seconds between the beginnings of two cycles."""
        return self.config.interval

    def begin(self) -> None:
        """Make hooks see what was retired before this boot, and take up what an agent before this one remembered."""
        self._cleaner.begin(self.ports.state)
        self._commands.resume()
        self._repair.resume()
        self._attempt("publish_retired", self.ports.actions.publish_retired)
        try:
            remembered = read_document(self.ports.state, MEMORY)
            if remembered is not None:
                self.memory = from_plain(remembered)
                if self.memory.kernel_sequence is not None:
                    self.ports.source.resume(self.memory.boot_id, self.memory.kernel_sequence)
        except (NodeAgentError, OSError) as error:
            self.ports.log.error("memory_unreadable", why=str(error), note="what is retired stays so until `restore`")
        # What was retired for an event leaves no trace but in the memory: if it is not there, nothing shows that the
        # fault is over. (It may have been lost, or never have been written for want of space.)
        retired = self.ports.actions.retired()
        self.chronicle.retired(retired)
        self._decider.unexplained = {
            unit
            for unit, record in retired.items()
            if record.get("check") in _EVENTS and not explains(self.memory, unit)
        }

    def end(self) -> None:
        """Let go of the probe, leave the cleaning of units to the hooks, write what waits for history."""
        self._cleaner.close()
        self.ports.errands.close()
        self.ports.holder_errands.close()
        self._surroundings.close()
        self._commands.close()
        self._repair.close()
        self.ports.source.close()
        self.chronicle.close()

    def fileno(self) -> int:
        """Return the descriptor that wakes the agent when an XID comes."""
        return self.ports.source.fileno()

    def cleaning_fileno(self) -> int:
        """Return the descriptor that wakes the agent when an epilog has handed units over; -1 for none."""
        return self._cleaner.fileno()

    @property
    def due(self) -> float:
        """When the next cycle is due although its turn comes later, by the clock's monotonic seconds."""
        return -inf if self._cleaner.called else min(self._lender.due, self._decider.pace.wake, self._repair.due)

    @property
    def is_out(self) -> bool:
        """Whether nothing of the agent's may open the driver now."""
        return self._lender.is_out

    def clean(self) -> None:
        """Take up what the agent was woken for, and look after the units between two jobs.

        While no GPU may be looked at these wait.
        """
        self.clean_at = inf  # also if this fails: the next cycle tries again
        self._cleaner.hear()
        if not self._lender.is_out:
            self.clean_at = self.ports.clock.monotonic() + self._cleaner.run(self._instances)

    def witnessed(self) -> bool:
        """Take up what woke the agent; True if one of the XIDs that wait for the next cycle is grave enough to hurry.

        Most lines of a kernel log are none, and those that programs cause must not set the agent's pace.
        """
        self._xids += self.ports.source.take_xids()
        return any(is_grave(event, self.config.health) for event in self._xids)

    def successor(self, config: Config, ports: Ports) -> Cycle:
        """Return the cycle that goes on with another configuration and all that this one remembers."""
        new = Cycle(config, self.node, self.version, ports)
        new.memory = self.memory
        new.snapshot = self.snapshot
        new.chronicle = self.chronicle
        new._counts = self._counts
        new._instances = self._instances
        new._swept, new._lender = self._swept, self._lender
        new._commands = self._commands.successor(config, ports.actions)
        new._repair = self._repair.successor(config, ports.actions, new._commands)
        new._decider = self._decider.successor(config, ports.actions, new._commands)
        new._cleaner = self._cleaner.successor(config, ports.actions, ports.source)
        new._xids = self._xids
        if self._holders is not None and ports.holders is not None:
            new._holders = self._holders.successor(config, ports.holders, ports.actions.retired)
        new._surroundings = self._surroundings.successor(config, ports.actions.store, ports.clock)
        return new

    def run(self) -> Snapshot:
        """Do one cycle and return what it publishes."""
        started = self.ports.clock.monotonic()
        if not os.fstat(self.ports.state.fd).st_nlink:
            raise StateGone(self.ports.state.path)
        self._cleaner.called = False
        self._decider.pace.wake = inf
        self._attempt("take_events", self._take_events)
        self._lending = Lending()
        self._attempt("maintenance", self._end_maintenance)
        swept = None if self._lender.is_away() else self.ports.source.sample()
        facts = self._facts(swept)
        before = self.memory
        verdict, self.memory = self._judge(facts, swept is not None)
        # First of all: what is known must not be lost to whatever happens while it is acted upon. But a full state
        # directory, or any other step that fails, keeps no faulty GPU in service.
        self._attempt("remember", lambda: write_document(self.ports.state, MEMORY, to_plain(self.memory)))
        self._counts.xids.update((xid.uuid, xid.xid) for xid in facts.xids)
        self._attempt("tell_hooks", lambda: self._tell_hooks(verdict, self._swept or facts))
        self.chronicle.cycle(facts, before, verdict)
        self._reconciler.run(facts, self._instances)
        self._completer.run()
        if swept is not None:
            self._cleaner.see(facts)
        self.clean()
        if self._holders is not None:
            self._holders.survey()
        self._decider.act(verdict, self._cleaner.soiled(facts, self._instances), swept is not None)
        if self._holders is not None:
            self._holders.run()
        self._attempt("settle_capacity", self._settle_capacity)
        self._attempt("reboot", lambda: self._repair.reboot(verdict, self._instances))
        self._commands.step(resting=swept is None)
        self._attempt("tidy", lambda: self._tidy(facts.driver))
        self.snapshot = self._snapshot(facts, verdict, started)
        document = published(self.snapshot, self._instances)
        self._attempt("publish", lambda: write_document(self.ports.state, SNAPSHOT, document))
        if swept is not None:
            self._attempt("lend", lambda: self._lend(facts))
        self._attempt("reset", lambda: self._repair.reset(verdict, self.memory, self._lending, self._instances))
        return self.snapshot

    def summary(self) -> str:
        """Return one line for `systemctl status`."""
        if self.snapshot is None:
            return "no verdict yet"
        states = Counter(unit.state for unit in self.snapshot.verdict.units)
        parts = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "no GPUs"
        parts += f"; drained: {self.snapshot.drain_reason}" if self.snapshot.drain_reason else ""
        parts += "; maintenance" if self.snapshot.maintenance is not None else ""
        return parts + ("; the driver is released, no GPU is looked at" if self.snapshot.released else "")

    def _attempt(self, step: str, action: Callable[[], object]) -> None:
        """Do a step; what keeps it from its end is said, and the others are done all the same."""
        try:
            action()
        except (NodeAgentError, OSError) as error:
            self.ports.log.error("step_failed", step=step, why=str(error))

    # -- the steps ----------------------------------------------------------------------------------------------------

    def _facts(self, swept: NodeFacts | None) -> NodeFacts:
        """Return what is known in this cycle; without a sweep no GPU is in it, and nothing is told of before."""
        if swept is None:
            driver = ("", "") if self._swept is None else (self._swept.driver, self._swept.kernel_driver)
            facts = NodeFacts(self.memory.boot_id, self.ports.clock.monotonic(), *driver)
        else:
            self._swept = facts = swept
        self.witnessed()
        self._counts.say_lost(self.ports.source, self.ports.log)
        facts = replace(facts, xids=tuple(self._xids), kernel_sequence=self.ports.source.kernel_sequence)
        self._xids = []
        return self._surroundings.complete(facts, resting=swept is None)

    def _judge(self, facts: NodeFacts, swept: bool) -> tuple[Verdict, Memory]:
        if swept or self.snapshot is None:
            return judge(self.memory, facts, self.config.health)
        return overheard(self.snapshot.verdict, self.memory, facts, self.config.health)

    def _lend(self, facts: NodeFacts) -> None:
        """Let NVML go till the next sweep if it is in the way of a reset. Last of all: it may take a second."""
        store = self.ports.actions.store
        retired, owners, kernel_log = store.retired(), store.owners(), self.ports.source.has_kernel_log
        self._lending = lending(facts, retired, owners, self._instances, kernel_log)
        self._lender.settle(self._lending)

    def _snapshot(self, facts: NodeFacts, verdict: Verdict, started: float) -> Snapshot:
        """Return what this cycle publishes."""
        record = self.ports.actions.records.drain()
        (checks, stuck_checks), (commands, stuck_commands) = self._surroundings.site.left(), self._commands.left()
        return Snapshot(
            node=self.node,
            pid=os.getpid(),
            interval=self.config.interval,
            monotonic=self.ports.clock.monotonic(),
            wall=self.ports.clock.wall(),
            facts=facts,
            verdict=verdict,
            retired=self.ports.actions.store.retired(),
            drain_reason=record.reason if record is not None else "",
            slots=slots_by_gpu(verdict, self._instances, self.config.sharing),
            counters=self._counts.frozen(
                events.dropped(self.ports.state),
                self._decider.counts,
                self.ports.source,
                self._surroundings.site.counts,
                self._commands.counts,
            ),
            history=self.chronicle.keeping(),
            maintenance=self.ports.actions.maintenance(),
            released=self._lender.let_go(checks + commands, stuck_checks + stuck_commands),
            scheduler_problem=self._decider.waiting.problem(),
            drain_waits=self._decider.drain_waits,
            cycle_seconds=self.ports.clock.monotonic() - started,
            version=self.version,
        )

    def _settle_capacity(self) -> None:
        """Have the host offer no more than is in service, as hooks have been told of it."""
        if self.ports.capacity is not None:
            store = self.ports.actions.store
            self.ports.capacity.settle(read_verdict(self.ports.state).units, store.retired(), store.owners())

    def _take_events(self) -> None:
        for event in events.take(self.ports.state):
            self._counts.hook_events[event.kind] += 1
            if event.kind == RESTORED_BY_HAND:
                self.memory = clear(self.memory, event.fields.get("units", ""))
                self._surroundings.site.again()
            if event.kind == RELEASE_DRIVER:
                if self.snapshot is not None:  # else it was asked of an agent before this one
                    self._lender.told(event)
                continue
            if event.kind == BY_HAND:
                self.chronicle.by_hand(event)
                self._decider.look()
                continue
            if event.kind == _CONFLICT:
                self._reconciler.hint()
            say = self.ports.log.debug if event.kind in _QUIET_EVENTS else self.ports.log.warning
            say("hook", kind=event.kind, **event.fields)

    def _end_maintenance(self) -> None:
        """End a maintenance whose time is over, be it that no agent ran when it was."""
        one = self.ports.actions.records.maintenance()
        if one is not None and one.is_over(self.ports.clock.wall()):
            self.ports.actions.end_maintenance()
            self.ports.log.warning("maintenance", after=OFF, why="its time is over")

    def _tell_hooks(self, verdict: Verdict, facts: NodeFacts) -> None:
        self._driver_set.see(facts.driver)
        self._instances = mig_instances(facts.gpus, self._instances)
        dry_run = self.config.policy.dry_run
        pid, interval, binds = os.getpid(), self.config.interval, self._driver_set.binds
        sharing = self.config.sharing
        file = verdict_file(verdict, facts, self._instances, pid, interval, binds, dry_run, sharing)
        self.ports.state.replace(VERDICT, file.encode())

    def _tidy(self, driver: str) -> None:
        """Do what can wait: look at the driver set again, complete hook.conf, forget old counters."""
        now = self.ports.clock.monotonic()
        self._driver_set.look_again(driver)
        # While a scheduler is away its commands take their whole time-out, and hook.conf is asked of it in the cycle.
        is_away = self.ports.errands.busy or self._decider.waiting.trouble is not None
        if now - self._tidied >= self._tidy_pause and not is_away:
            self._tidied = now
            # Asked ever more seldom: what a hung driver keeps from answering may stay behind as a hanging process.
            self._tidy_pause = min(_DAY, 2 * max(self._tidy_pause, ASK_AGAIN * self.interval))
            if not self.ports.hook_conf.complete and not self._lender.is_out:
                self.ports.hook_conf()
            reruns.sweep(self.ports.state, _DAY)
            self.ports.state.forget_temporaries(_DAY)


def _keeper(config: Config, ports: Ports) -> HolderKeeper | None:
    """Return who keeps retired GPUs from Slurm's jobs; None under other schedulers."""
    if ports.holders is None:
        return None
    store, retired = ports.actions.store, ports.actions.retired
    return HolderKeeper(config, ports.holders, store, retired, ports.clock, ports.log, ports.holder_errands)
