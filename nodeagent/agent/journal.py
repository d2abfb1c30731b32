"""The agent's log: structlog, into the journal with fields of its own, or as lines on standard error."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import structlog

try:
    from systemd.journal import send as _journal_send
except ImportError:  # the demo on a machine without libsystemd's headers
    _journal_send = None

MESSAGE_IDS: Mapping[str, str] = {
    "agent_ready": "066307d920b44b7ca89a2990e07c85a6",
    "agent_stopping": "6fa72bef493d4812b03ff65c204c73b4",
    "config_reloaded": "73b6d57888024a3588996c6e3c10dc86",
    "config_refused": "66582b666b3449d6934e3547af580fc5",
    "verdict_changed": "52b0b158ad9947ffb5f1b83179f29a1d",
    "reasons_changed": "a6042a85dc4b4797a6af1e78d3da1ba5",
    "xid": "92eceb59a25848c8b095185a91c4096b",
    "xids_lost": "c7d0e5b2493f4a6d8e1f7b3a5c9d0264",
    "retire": "9a8b31784a004cb1a5472f8fda01f56f",
    "restore": "a2d97d61c860455e99c29b74c0c1df8b",
    "drain": "73dd032b5ff34296be3caba5f8cda9c6",
    "resume": "d7d8fcede4b54bcda474c951220e55d8",
    "drain_refused": "e8c1c2e2090e40a590eff4acaa131cab",
    "action_failed": "b0ad01b3459a49768b10da0a00a275bc",
    "lock_reconciled": "f219165d5dda4d3fb5d80f5ee1ea3c38",
    "mode_restored": "7d1c5cf1f5c94e3c8a0f0a3c6f2e54b1",
    "mode_refused": "c2b8b0e3a58b4d0d9d6c7b3f7a1f9e42",
    "foreign_process": "f0b8c1f4a0a94e7d9a53c7f3b2f6d915",
    "hook": "360be52b39e24d279e649f122bb8155f",
    "driver_released": "3d0a1c6e1c5f4b0f9a2b7a64c1b7e5d8",
    "driver_taken_back": "b1f3f0c2a8d94e1d8f6f0a5f7c9d2e63",
    "driver_lent": "5a8e7d1b90c24c7fa3d6e2b4f8017c9a",
    "driver_kept": "e94c2f6b7d3a4f58b1c0d9a7e6f52384",
    "probe_failed": "887db0011f264c3f9558ce01cd4cd06c",
    "maintenance": "0c1f5f4e7b8a4f6f9d2ad7c3b5e1846a",
    "raise_drain": "6acfe64d63a0494cae4ae4132a51ce9a",
    "drain_waits": "01a8c7d19f1d49b7903e58745a79557c",
    "reset_begun": "05ae549827774d31b4f044ee5f8bf091",
    "reset_ended": "129ec4ef503645eb862c33aa423a925c",
    "reset_failed": "392d7b5ee41e42d182adfc4e618f784b",
    "reboot": "863983aeb9b24f8e97e68be5361649a7",
    "reboot_failed": "b02f18b9730943f0bf7e19eea590cd0d",
    "run_command": "0a68b49010534f69acfa46134ab43196",
    "command_ended": "9e1167a658ff418e9e51531eb67b7615",
    "command_failed": "7b61892ebaaa43c28b8213e7060e8d84",
    "forget_drain": "8848c9103aeb4accbdec6cc7d9c554b0",
    "scheduler_unavailable": "76470ba47adb4975a5d19a0ea5df2ea0",
    "scheduler_available": "10839caa41a049c6b9b52efbc23fc85e",
    "drain_dropped": "15f3b4761dd54210a45ed84311fc6d66",
    "history_unavailable": "9948bf65ca0d437eae1b7770b118ec24",
    "history_resumed": "05056488a9fc4077b8786bbaaac66c1e",
    "history_dropped": "c01248f563ef46ff9cf7722ec14ca8cc",
    "history_damaged": "c4b18d051bad4eaf9b8c28d725c263d4",
    "holder_placed": "efcf1d215c784d4897127f0de36eb25a",
    "holder_unsafe": "d9ac2593463547b38a4a5804a61c9ff2",
    "holder_given_up": "08d091c1d40442aaa9b759f422645284",
    "cycle_failed": "2234a840185f4e11ac3a4dee878e875f",
}
"""A MESSAGE_ID for each kind of event: `journalctl MESSAGE_ID=…` finds them, a catalog explains them."""

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_FIELDS = {"gpu_uuid": "GPU_UUID", "job": "JOB", "check": "CHECK", "verdict": "VERDICT"}

Log = Any  # structlog's bound loggers take any keyword


class JournalSink:
    """Sends each event to the journal with MESSAGE_ID and the fields that people filter by."""

    def __init__(self, send: Callable[..., object]) -> None:
        self._send = send

    def msg(self, **event: Any) -> None:
        """Send one event."""
        kind = str(event.pop("event"))
        level = str(event.pop("level", "info"))
        fields = {_FIELDS[key]: str(value) for key, value in event.items() if key in _FIELDS}
        if kind in MESSAGE_IDS:
            fields["MESSAGE_ID"] = MESSAGE_IDS[kind]
        words = " ".join(f"{key}={_one_line(value)}" for key, value in event.items())
        self._send(
            f"{kind} {words}".strip(),
            PRIORITY=_PRIORITIES.get(level, 6),
            SYSLOG_IDENTIFIER="gpu-nodeagent",
            EVENT=kind,
            **fields,
        )

    debug = info = warning = error = critical = msg


def _one_line(value: Any) -> str:
    text = str(value)
    text = text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
    return f'"{text}"' if " " in text or not text else text


def _as_fields(_: Any, __: str, event: MutableMapping[str, Any]) -> tuple[tuple[()], MutableMapping[str, Any]]:
    return (), event


def _render_line(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    """One line an event, whatever is in it: time, level, kind, key=value."""
    head = f"{event.pop('timestamp', '')} {event.pop('level', 'info'):7s} {event.pop('event')}"
    return " ".join([head.strip(), *(f"{key}={_one_line(value)}" for key, value in event.items())])


def open_log(level: str, to_journal: bool | None = None) -> Log:
    """Return the agent's logger.

    Args:
        level: debug, info, warning or error.
        to_journal: None decides by JOURNAL_STREAM, which systemd sets where standard error is the journal.

    """
    if to_journal is None:
        to_journal = "JOURNAL_STREAM" in os.environ
    threshold = structlog.make_filtering_bound_logger(getattr(logging, level.upper()))
    if to_journal and _journal_send is not None:
        return structlog.wrap_logger(
            JournalSink(_journal_send),
            processors=[structlog.stdlib.add_log_level, _as_fields],
            wrapper_class=threshold,
        )
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _render_line,
        ],
        wrapper_class=threshold,
    )
