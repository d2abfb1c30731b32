"""What outlives a reboot, in `data_dir`: what is retired, our own drain, memos about it, reboots, maintenance."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

from nodeagent.errors import UnknownFormat, UntrustedFile
from nodeagent.health.finding import RecoveryAction
from nodeagent.lock.store import RETIRED, read_retired
from nodeagent.policy.decide import DrainRecord
from nodeagent.state.files import Directory, decode_pairs, encode_pairs
from nodeagent.state.maintenance import Maintenance, drop_maintenance, read_maintenance, write_maintenance

DRAINED = "drained"
PENDING = "pending"
"""The memo of a drain that waits for the scheduler: its reason, since when it waits, and why."""
RESUMED = "resumed"
"""The memo of the faults in spite of which somebody has resumed the node."""
REBOOTS = "reboots"
_MOST_REBOOTS = 100


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
            action = RecoveryAction.of(pairs["action"])
            return DrainRecord(pairs["reason"], action, pairs["by"], pairs["scope"], pairs.get("stands") != "no")
        except FileNotFoundError:
            return None
        except (UnknownFormat, UntrustedFile, KeyError, OSError):
            # Unreadable: whose it was is not known, so it is nobody's to take back by itself.
            return DrainRecord("unreadable record", RecoveryAction.INSPECT_HARDWARE)

    def put_drain(self, record: DrainRecord) -> None:
        """Record a drain of ours."""
        fields = {"reason": record.reason, "action": record.action.word, "by": record.by, "scope": record.scope}
        fields |= {"stands": "yes" if record.stands else "no", "since": str(int(time.time()))}
        self._data.replace(DRAINED, encode_pairs(fields.items()), durable=True)

    def drop_drain(self) -> None:
        """Forget our drain."""
        self._data.remove(DRAINED)

    def memo(self, name: str) -> dict[str, str]:
        """Return the memo PENDING or RESUMED; empty where there is none, or none that can be read."""
        try:
            return decode_pairs(name, self._data.read(name))
        except (UnknownFormat, UntrustedFile, OSError):
            return {}

    def put_memo(self, name: str, fields: Mapping[str, str]) -> None:
        """Write a memo, or remove it with empty fields."""
        if fields:
            self._data.replace(name, encode_pairs(fields.items()), durable=True)
        else:
            self._data.remove(name)

    def reboots(self) -> list[float]:
        """Return when the node was last had rebooted, as wall time in seconds."""
        try:
            return [float(word) for word in decode_pairs(REBOOTS, self._data.read(REBOOTS)).get("at", "").split()]
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise UnknownFormat(REBOOTS, str(error)) from error

    def put_reboots(self, times: Sequence[float]) -> None:
        """Record when the node was had rebooted; the last ones are enough."""
        words = " ".join(f"{at:.0f}" for at in times[-_MOST_REBOOTS:])
        self._data.replace(REBOOTS, encode_pairs([("at", words)]), durable=True)

    def maintenance(self) -> Maintenance | None:
        """Return the maintenance that is recorded, be its time over or not."""
        return read_maintenance(self._data)

    def put_maintenance(self, maintenance: Maintenance) -> None:
        """Record it."""
        write_maintenance(self._data, maintenance)

    def drop_maintenance(self) -> None:
        """Forget it."""
        drop_maintenance(self._data)
