"""The only code that changes the world: retire, restore, drain, resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from nodeagent.agent.records import RESUMED, Records
from nodeagent.errors import NodeAgentError, NodeTaken
from nodeagent.health.finding import RecoveryAction
from nodeagent.history.entry import (
    DONE,
    DRAIN,
    FORGET_DRAIN,
    OFF,
    ON,
    RAISE_DRAIN,
    RESTORE,
    RESUME,
    RETIRE,
    Entry,
)
from nodeagent.history.entry import MAINTENANCE as MAINTENANCE_MODE
from nodeagent.lock.record import CLEANING, HOLD, MAINTENANCE
from nodeagent.lock.store import Store
from nodeagent.policy.decide import BY_ADMIN, BY_AGENT, DrainRecord, adopted
from nodeagent.policy.limits import full
from nodeagent.scheduler.port import Fleet, NodeState, Scheduler
from nodeagent.scheduler.turn import NotOurTurn, Turn
from nodeagent.state.maintenance import Maintenance, standing


class DrainRefused(NodeAgentError):
    """The limit on drained nodes is reached, or somebody else has the node: it is not drained, or not resumed."""

    exit_code = 69

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)

    def __str__(self) -> str:
        return f"nothing done: {self.why}"


class LimitReached(DrainRefused):
    """Of the `nodes` that share a limit with this one no further one may go."""

    def __init__(self, max_drained: str, fleet: Fleet) -> None:
        self.nodes = fleet.nodes
        counted = f"{fleet.drained_by_us} of {fleet.nodes} nodes of {fleet.name} are out"
        super().__init__(f"limits.max_drained ({max_drained}) is reached: {counted}")


class NotRecorded(NodeAgentError):
    """It was done, but could not be written where it outlives a reboot."""

    exit_code = 1

    def __init__(self, what: str, why: str) -> None:
        self.what = what
        self.why = why
        super().__init__(what, why)

    def __str__(self) -> str:
        return f"{self.what}, but could not be recorded in data_dir: {self.why}"


def retirement(unit: str, record: Mapping[str, str]) -> Entry:
    """Return the entry for a retirement, as its record tells it; made twice it is the same."""
    since = record.get("since", "")
    return Entry(
        float(since) if since.isdigit() else 0.0,
        RETIRE,
        record.get("boot_id", ""),
        unit,
        after=DONE,
        check=record.get("check", ""),
        action=record.get("action", ""),
        by=f"{record.get('by', '')} {record.get('who', '')}".strip(),
        evidence=record.get("reason", ""),
        again=True,
    )


class Actions:
    """Carries decisions out. Each method raises what kept it from doing so; doing one twice is harmless.

    `tell` is given an entry for history about each thing that was done. `who` is the person at a command.
    """

    def __init__(
        self,
        store: Store,
        records: Records,
        scheduler: Scheduler,
        max_drained: str,
        boot_id: str = "",
        tell: Callable[[Entry], None] = lambda _: None,
        who: str = "",
    ) -> None:
        self.store = store
        self.records = records
        self.scheduler = scheduler
        self.max_drained = max_drained
        self.boot_id = boot_id
        self.tell = tell
        self.who = who

    def deed(
        self, kind: str, unit: str = "", why: str = "", action: str = "", by: str = BY_AGENT, after: str = DONE
    ) -> None:
        """Tell of something that was done, or of what came of it instead."""
        self.tell(Entry(time.time(), kind, self.boot_id, unit, after=after, action=action, by=by, evidence=why))

    def busy(self) -> bool:
        """Say whether a job holds a unit of the node, as far as is known."""
        return any(owner.scheduler not in (HOLD, MAINTENANCE, CLEANING) for owner in self.store.owners().values())

    def publish_retired(self) -> None:
        """Make what hooks see and what is recorded the same: what stands in either is retired.

        So a retirement that was cut short anywhere is completed, and none is undone but by `restore`.

        Raises:
            NodeAgentError, OSError: they are not the same yet; the next call tries again.

        """
        if self.records.retired() == self.store.retired():
            return
        with self.store.exclusive():
            recorded, shown = self.records.retired(), self.store.retired()
            for unit in recorded:
                if shown.get(unit) != recorded[unit]:
                    self.store.retire(unit, recorded[unit].items())
            for unit in shown.keys() - recorded.keys():
                self.records.put_retired(unit, shown[unit])
                self.tell(retirement(unit, shown[unit]))

    def retired(self) -> dict[str, dict[str, str]]:
        """Return unit → record of all that is retired, also where that could not be recorded or the record be read."""
        try:
            recorded = self.records.retired()
        except (NodeAgentError, OSError):
            recorded = {}
        return {**self.store.retired(), **recorded}

    def retire(
        self,
        unit: str,
        reason: str,
        check: str,
        action: RecoveryAction,
        by: str = BY_AGENT,
        processes: str = "",
    ) -> None:
        """Grant the unit no more, from now on and after a reboot. `processes` are those that hold it: `PID:START …`.

        Raises:
            NotRecorded: it is granted no more, but a reboot may bring it back; the agent tries again to record it.
            LockBusy, OSError: it may still be granted; `publish_retired` ends what was begun.

        """
        record = {
            "reason": reason,
            "check": check,
            "action": action.word,
            "by": by,
            "since": str(int(time.time())),
            "boot_id": self.boot_id,
            **({"who": self.who} if self.who else {}),
            **({"processes": processes} if processes else {}),
        }
        failure: Exception | None = None
        try:
            self.records.put_retired(unit, record)
        except (NodeAgentError, OSError) as error:  # a full or dying disk must not keep a dying GPU in service
            failure = error
        with self.store.exclusive():
            self.store.retire(unit, record.items())
        self.tell(retirement(unit, record))
        if failure is not None:
            raise NotRecorded(f"{unit} is retired", str(failure)) from failure

    def restore(self, unit: str, by: str = BY_AGENT) -> bool:
        """Grant the unit again; False if it was not retired. What fails half-way leaves it retired."""
        with self.store.exclusive():
            recorded = unit in self.records.retired()
            shown = self.store.restore(unit)
            self.records.drop_retired(unit)
        if shown or recorded:
            self.deed(RESTORE, unit, by=by)
        return shown or recorded

    def drain(self, reason: str, action: RecoveryAction, by: str = BY_AGENT, force: bool = False) -> None:
        """Drain the node, unless somebody else has or the limit is reached (`force`: an administrator overrules that).

        Recorded as ours before it is done, and kept when the command fails: it may have taken effect all the same (a
        controller that answers too late). A record of a drain that does not stand is dropped later; a drain without
        a record would stand for ever.

        Raises:
            DrainRefused, NotOurTurn: the node is as it was.
            CommandFailed: it may be drained or not.
            NotRecorded: it is drained.

        """
        if force:
            self._drain(reason, action, by)
            return
        self._look_for_room()  # of many that ask at once most are refused here, and keep nobody waiting
        with self.turn() as turn:
            self._look_for_room()
            self._drain(reason, action, by, turn.spend)

    def turn(self) -> Turn:
        """Return this node's turn at counting and draining, to be entered."""
        return self.scheduler.turn()

    def _look_for_room(self) -> None:
        fleet = full(self.scheduler.fleets(), self.max_drained)
        if fleet is not None:
            raise LimitReached(self.max_drained, fleet)

    def _drain(
        self, reason: str, action: RecoveryAction, by: str, last_of_all: Callable[[], None] = lambda: None
    ) -> None:
        state: NodeState = self.scheduler.node_state()
        if state.drained and (state.foreign or state.reason is None):
            raise DrainRefused(str(NodeTaken(state.reason or "")))
        before = self.records.drain()
        earlier = before.scope.split() if before else []
        record = DrainRecord(reason, action, by, _joined(self.scheduler.drain_scope().split(), earlier), stands=False)
        failure = self._put_drain(record)
        try:
            last_of_all()
            closed = self.scheduler.drain(reason, record.scope)
        except NotOurTurn:
            self._put_back(before)
            raise
        except NodeTaken as error:
            self.records.drop_drain()
            raise DrainRefused(str(error)) from error
        failure = self._put_drain(replace(record, scope=_joined(closed.split(), earlier), stands=True)) or failure
        self.deed(DRAIN, why=reason, action=action.word, by=by)
        if failure is not None:
            raise NotRecorded("the node is drained", str(failure)) from failure

    def _put_back(self, before: DrainRecord | None) -> None:
        if before is None:
            self.records.drop_drain()
        else:
            self.records.put_drain(before)

    def _put_drain(self, record: DrainRecord) -> Exception | None:
        """Record a drain; return what kept it from that."""
        try:
            self.records.put_drain(record)
        except (NodeAgentError, OSError) as error:
            return error
        return None

    def raise_drain(self, action: RecoveryAction) -> None:
        """Note that the node we drained needs more than was known then."""
        record = self.records.drain()
        if record is not None:
            self.records.put_drain(replace(record, action=action))
            self.deed(RAISE_DRAIN, why=f"needs {action.word}", action=action.word)

    def forget_drain(self, faults: Collection[str] = ()) -> None:
        """Drop the record of a drain that stands no more; remember the faults in spite of which it was taken back."""
        why = "somebody else has resumed the node, or it has a reason of theirs"
        if faults:
            self.records.put_memo(RESUMED, {"faults": " ".join(sorted(faults))})
            why = "somebody has resumed the node: it is drained again only if a fault shows again"
        self.records.drop_drain()
        self.deed(FORGET_DRAIN, why=why)

    def resume(self, by: str = BY_AGENT) -> None:
        """Give the node back, as far as its drain is ours.

        Raises:
            DrainRefused: it is not.
            CommandFailed: it may be resumed or not.

        """
        state, record = self.scheduler.node_state(), self.records.drain()
        if state.drained and state.foreign:
            raise DrainRefused(f"the reason is not ours: {state.reason}")
        if record is None and state.drained:
            if state.reason is None:
                raise DrainRefused("there is no record that this product disabled the host's queues")
            record = adopted(state.reason) or DrainRecord(state.reason, scope="node")
        # A scheduler without reasons may have been opened in part by somebody: what is still closed by us is opened.
        if record is not None and (state.drained or state.reason is None):
            try:
                self.scheduler.resume(record.scope)
            except NodeTaken as error:
                raise DrainRefused(f"the reason is not ours: {error.reason}") from error
            self.deed(RESUME, why=record.reason, by=by)
        if record is not None and by != BY_AGENT:
            self._put_drain(replace(record, stands=True))  # the agent finds it resumed by hand, and heeds that
        else:
            self.records.drop_drain()

    def maintenance(self) -> Maintenance | None:
        """Return the maintenance that stands at this moment: while it does the agent only looks and tells."""
        return standing(self.records.maintenance(), time.time())

    def begin_maintenance(self, maintenance: Maintenance) -> None:
        """Have the agent take nothing out and bring nothing back, from its next decision on and after a reboot."""
        self.records.put_maintenance(maintenance)
        self.deed(MAINTENANCE_MODE, why=maintenance.why, by=BY_ADMIN, after=ON)

    def end_maintenance(self, why: str = "its time is over", by: str = BY_AGENT) -> None:
        """Let the agent act again: what became due meanwhile it does in its next cycle."""
        self.records.drop_maintenance()
        self.deed(MAINTENANCE_MODE, why=why, by=by, after=OFF)


def _joined(*scopes: Iterable[str]) -> str:
    return " ".join(sorted(set().union(*scopes)))
