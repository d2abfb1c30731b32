"""A finding: what one check saw on one unit, how bad it is and which recovery it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """How bad: INFO changes no verdict, WARNING degrades, ERROR fails the unit; UNKNOWN could not be judged."""

    INFO = 0
    WARNING = 1
    UNKNOWN = 2
    ERROR = 3


class RecoveryAction(IntEnum):
    """What brings the unit back, from the mildest to the gravest (NVIDIA's XID catalogue, field value 230)."""

    NONE = 0
    RESTART_APPLICATION = 1
    RESET_GPU = 2
    REBOOT_NODE = 3
    INSPECT_HARDWARE = 4

    @property
    def word(self) -> str:
        """The action as configuration and output write it."""
        return self.name.lower()

    @classmethod
    def of(cls, word: str) -> RecoveryAction:
        """Return the action of that word."""
        return cls[word.upper()]


@dataclass(frozen=True)
class Finding:
    """`unit` is a UUID, or empty for the node as a whole. `evidence` is one line for a person.

    `at` is when it was observed (monotonic seconds), if that was not in this cycle: the same observation, told again in
    later cycles, is one strike.
    """

    check: str
    unit: str
    severity: Severity
    evidence: str
    action: RecoveryAction = RecoveryAction.NONE
    at: float | None = None
