"""The only code that changes the world: retire, restore, drain, resume, and the records of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from nodeagent.errors import NodeAgentError, UnknownFormat, UntrustedFile
from nodeagent.health.finding import RecoveryAction
from nodeagent.history.entry import (
    DONE,
    DRAIN,
    FORGET_DRAIN,
    MAINTENANCE,
    OFF,
    ON,
    RAISE_DRAIN,
    RESTORE,
    RESUME,
    RETIRE,
    Entry,
)
from nodeagent.lock.store import RETIRED, Store, read_retired
from nodeagent.policy.decide import BY_ADMIN, BY_AGENT, DrainRecord, adopted
from nodeagent.policy.limits import may_drain
from nodeagent.scheduler.port import NodeState, Scheduler
from nodeagent.state.files import Directory, decode_pairs, encode_pairs
from nodeagent.state.maintenance import Maintenance, drop_maintenance, read_maintenance, write_maintenance

DRAINED = "drained"


class DrainRefused(NodeAgentError):
    """The limit on drained nodes is reached, or somebody else has the node: it is not drained, or not resumed."""

    exit_code = 69

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)

    def __str__(self) -> str:
        return f"nothing done: {self.why}"


class NotRecorded(NodeAgentError):
    """It was done, but could not be written where it outlives a reboot."""

    exit_code = 1

    def __init__(self, what: str, why: str) -> None:
        self.what = what
        self.why = why
        super().__init__(what, why)

    def __str__(self) -> str:
        return f"{self.what}, but could not be recorded in data_dir: {self.why}"


class Records:
    """What outlives a reboot, in `data_dir`: retirements and our own drain. Its truth is copied to the state."""

    def __init__(self, data_dir: str) -> None:
        os.makedirs(data_dir, mode=0o755, exist_ok=True)
        self._data = Directory(data_dir)

    def retired(self) -> dict[str, dict[str, str]]:
        """Return unit → record."""
        return read_retired(self._data)

    def put_retired(self, unit: str, record: dict[str, str]) -> None:
        """Record a retirement so that it survives a power cut."""
        retired = self._data.sub(RETIRED, create=True)
        try:
            retired.replace(unit, encode_pairs(record.items()), durable=True)
        finally:
            retired.close()

    def drop_retired(self, unit: str) -> None:
        """Forget a retirement."""
        retired = self._data.sub(RETIRED, create=True)
        try:
            retired.remove(unit)
        finally:
            retired.close()

    def drain(self) -> DrainRecord | None:
        """Return our own drain, if there is one."""
        try:
            pairs = decode_pairs(DRAINED, self._data.read(DRAINED))
            return DrainRecord(pairs["reason"], RecoveryAction.of(pairs["action"]), pairs["by"], pairs["scope"])
        except FileNotFoundError:
            return None
        except (UnknownFormat, UntrustedFile, KeyError, OSError):
            # Unreadable: whose it was is not known, so it is nobody's to take back by itself.
            return DrainRecord("unreadable record", RecoveryAction.INSPECT_HARDWARE)

    def put_drain(self, record: DrainRecord) -> None:
        """Record a drain of ours."""
        fields = {"reason": record.reason, "action": record.action.word, "by": record.by, "scope": record.scope}
        self._data.replace(DRAINED, encode_pairs([*fields.items(), ("since", str(int(time.time())))]), durable=True)

    def drop_drain(self) -> None:
        """Forget our drain."""
        self._data.remove(DRAINED)

    def maintenance(self) -> Maintenance | None:
        """Return the maintenance that is recorded, be its time over or not."""
        return read_maintenance(self._data)

    def put_maintenance(self, maintenance: Maintenance) -> None:
        """Record it."""
        write_maintenance(self._data, maintenance)

    def drop_maintenance(self) -> None:
        """Forget it."""
        drop_maintenance(self._data)


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
            DrainRefused: the node is as it was.
            CommandFailed: it may be drained or not.
            NotRecorded: it is drained.

        """
        state: NodeState = self.scheduler.node_state()
        if state.drained and (state.foreign or state.reason is None):
            raise DrainRefused(f"the node is out of service already: {state.reason or 'by somebody else'}")
        if not force and not may_drain(self.scheduler.fleet(), self.max_drained):
            raise DrainRefused(f"limits.max_drained ({self.max_drained}) is reached")
        before = self.records.drain()
        scope = " ".join(sorted({*self.scheduler.drain_scope().split(), *(before.scope.split() if before else ())}))
        failure: Exception | None = None
        try:
            self.records.put_drain(DrainRecord(reason, action, by, scope))
        except (NodeAgentError, OSError) as error:
            failure = error
        self.scheduler.drain(reason, scope)
        self.deed(DRAIN, why=reason, action=action.word, by=by)
        if failure is not None:
            raise NotRecorded("the node is drained", str(failure)) from failure

    def raise_drain(self, action: RecoveryAction) -> None:
        """Note that the node we drained needs more than was known then."""
        record = self.records.drain()
        if record is not None:
            self.records.put_drain(DrainRecord(record.reason, action, record.by, record.scope))
            self.deed(RAISE_DRAIN, why=f"needs {action.word}", action=action.word)

    def forget_drain(self) -> None:
        """Drop the record of a drain that stands no more."""
        self.records.drop_drain()
        self.deed(FORGET_DRAIN, why="somebody else has resumed the node, or it has a reason of theirs")

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
            self.scheduler.resume(record.scope)
            self.deed(RESUME, why=record.reason, by=by)
        self.records.drop_drain()

    def maintenance(self) -> Maintenance | None:
        """Return the maintenance that stands at this moment: while it does the agent only looks and tells."""
        one = self.records.maintenance()
        return None if one is None or one.is_over(time.time()) else one

    def begin_maintenance(self, maintenance: Maintenance) -> None:
        """Have the agent take nothing out and bring nothing back, from its next decision on and after a reboot."""
        self.records.put_maintenance(maintenance)
        self.deed(MAINTENANCE, why=maintenance.why, by=BY_ADMIN, after=ON)

    def end_maintenance(self, why: str = "its time is over", by: str = BY_AGENT) -> None:
        """Let the agent act again: what became due meanwhile it does in its next cycle."""
        self.records.drop_maintenance()
        self.deed(MAINTENANCE, why=why, by=by, after=OFF)
