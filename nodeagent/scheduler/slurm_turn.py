"""Slurm: whose turn it is to count and drain, and who was drained lately, as reservations of nothing.

A second reservation of a name is refused by the controller, and it removes those whose end has come: both without a
server of ours. Ours have no node (`ANY_NODES`) and one unit of a burst buffer that nobody has, so no job and no node
knows of them. They are root's, and root's agent is who makes them.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable

from nodeagent.errors import CommandFailed
from nodeagent.scheduler.turn import NotOurTurn, Turn

TURN = "gpu-nodeagent-turn"
DRAINED = "gpu-nodeagent-drained-"
_TAKEN = "Duplicate reservation name"
_NAME = re.compile(rf"^ReservationName={DRAINED}(\S+)", re.MULTILINE)


class SlurmTurn(Turn):
    """See Turn. `scontrol` runs that command; a drain is noted for `window` seconds, 0: not at all.

    The name is free again when it was given back; after a holder's death, once its end has come and the controller
    has looked at its reservations (86 s after its beginning, measured with 22.05).
    """

    def __init__(
        self,
        scontrol: Callable[..., str],
        node: str,
        window: float,
        timeout: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(timeout, monotonic)
        self._scontrol = scontrol
        self._node = node
        self._window = window

    def _take(self) -> None:
        if not self._reserve(TURN, self.length):
            raise NotOurTurn("another node counts and drains at this moment")

    def _give_back(self) -> None:
        self._scontrol("delete", f"reservationname={TURN}")

    def _note(self) -> None:
        if self._window:
            self._reserve(DRAINED + self._node, self._window)  # refused: noted already, which is all that is asked

    def _reserve(self, name: str, seconds: float) -> bool:
        """Make a reservation that begins now; False if one of that name is there."""
        words = ("starttime=now", f"duration={math.ceil(seconds / 60)}", "users=root")
        try:
            self._scontrol(
                *("create", "reservation", f"reservationname={name}", *words),
                *("flags=ANY_NODES", "burstbuffer=gpu-nodeagent:1"),
            )
        except CommandFailed as error:
            if _TAKEN in error.output:
                return False
            raise
        return True


def lately_drained(scontrol: Callable[..., str], window: float) -> set[str]:
    """Return the nodes whose drain was noted less than `window` seconds ago, resumed since or not."""
    return set(_NAME.findall(scontrol("-o", "show", "reservation"))) if window else set()
