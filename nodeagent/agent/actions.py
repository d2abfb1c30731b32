"""The only code that changes the world: retire, restore, drain, resume, and the records of them."""

from __future__ import annotations

import os
import time

from nodeagent.errors import NodeAgentError, UnknownFormat
from nodeagent.health.finding import RecoveryAction
from nodeagent.lock.store import RETIRED, Store, read_retired
from nodeagent.policy.decide import BY_AGENT, DrainRecord
from nodeagent.policy.limits import may_drain
from nodeagent.scheduler.port import NodeState, Scheduler
from nodeagent.state.files import Directory, decode_pairs, encode_pairs

DRAINED = "drained"


class DrainRefused(NodeAgentError):
    """The limit on drained nodes is reached, or somebody else has the node."""

    exit_code = 69

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)

    def __str__(self) -> str:
        return f"not drained: {self.why}"


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
            return DrainRecord(pairs["reason"], RecoveryAction.of(pairs["action"]), pairs["by"])
        except FileNotFoundError:
            return None
        except (UnknownFormat, KeyError):
            # Unreadable: whose it was is not known, so it is nobody's to take back by itself.
            return DrainRecord("unreadable record", RecoveryAction.INSPECT_HARDWARE)

    def put_drain(self, record: DrainRecord) -> None:
        """Record a drain of ours."""
        pairs = [("reason", record.reason), ("action", record.action.word), ("by", record.by)]
        self._data.replace(DRAINED, encode_pairs([*pairs, ("since", str(int(time.time())))]), durable=True)

    def drop_drain(self) -> None:
        """Forget our drain."""
        self._data.remove(DRAINED)


class Actions:
    """Carries decisions out. Each method raises what kept it from doing so; doing one twice is harmless."""

    def __init__(self, store: Store, records: Records, scheduler: Scheduler, max_drained: str) -> None:
        self.store = store
        self.records = records
        self.scheduler = scheduler
        self.max_drained = max_drained

    def publish_retired(self) -> None:
        """Copy the truth to where hooks look: before anybody is told that the agent is ready."""
        with self.store.exclusive():
            self.store.sweep()
            for unit, record in self.records.retired().items():
                self.store.retire(unit, record.items())

    def retire(self, unit: str, reason: str, check: str, action: RecoveryAction, by: str = BY_AGENT) -> None:
        """Grant the unit no more. The lasting record comes first: a crash in between is mended at the next start."""
        record = {
            "reason": reason,
            "check": check,
            "action": action.word,
            "by": by,
            "since": str(int(time.time())),
        }
        self.records.put_retired(unit, record)
        with self.store.exclusive():
            self.store.retire(unit, record.items())

    def restore(self, unit: str) -> bool:
        """Grant the unit again; False if it was not retired."""
        self.records.drop_retired(unit)
        with self.store.exclusive():
            return self.store.restore(unit)

    def drain(self, reason: str, action: RecoveryAction, by: str = BY_AGENT, force: bool = False) -> None:
        """Drain the node, unless somebody else has or the limit is reached (`force`: an administrator overrules that).

        Recorded as ours before it is done: a crash in between leaves a record of a drain that does not stand, which
        the next cycle drops; the other order could leave a drain that nobody takes back.

        Raises:
            DrainRefused, CommandFailed: the node is as it was.

        """
        state: NodeState = self.scheduler.node_state()
        if state.drained and state.foreign:
            raise DrainRefused(f"the node is drained already: {state.reason}")
        if not force and not may_drain(self.scheduler.fleet(), self.max_drained):
            raise DrainRefused(f"limits.max_drained ({self.max_drained}) is reached")
        self.records.put_drain(DrainRecord(reason, action, by))
        try:
            self.scheduler.drain(reason)
        except NodeAgentError:
            self.records.drop_drain()
            raise

    def resume(self) -> None:
        """Give the node back. A reason of somebody else's stays.

        Raises:
            DrainRefused: somebody else has drained the node meanwhile.
            CommandFailed: the node is as it was.

        """
        state = self.scheduler.node_state()
        if state.drained and state.foreign:
            raise DrainRefused(f"the reason is not ours: {state.reason}")
        if state.drained:
            self.scheduler.resume()
        self.records.drop_drain()
