"""Takes what is out of service from what a Grid Engine host offers, and gives it back: `scheduler.sge.retire`.

For hosts without a load sensor: the number in the host's complex_values is lowered, and the scheduler's own count of
what is in use goes on from there. That number is an administrator's. So what it was is recorded before it is changed;
one that somebody else has set meanwhile stays, and is what later changes begin from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from nodeagent.agent.errand import Errands
from nodeagent.agent.journal import Log
from nodeagent.clock import Clock
from nodeagent.errors import NodeAgentError, UnknownFormat
from nodeagent.lock.occupancy import Occupancy, usable, vanished
from nodeagent.lock.record import HOLD, MAINTENANCE, UNREADABLE, Owner
from nodeagent.state.files import Directory, decode_pairs, encode_pairs
from nodeagent.state.verdict_file import UnitLine

_FILE = "lowered"
_FIELDS = ("base", "ours", "out", "known", "was")


class Offer(Protocol):
    """What a host offers (scheduler/sge_capacity.py). Both may raise CommandFailed."""

    def offered(self) -> int | None:
        """Return how many; None where the host says nothing about it."""

    def offer(self, count: int) -> None:
        """Set it."""


class NothingOffered(NodeAgentError):
    """The host's complex_values do not name the complex, so there is nothing to take anything from."""

    exit_code = 78

    def __str__(self) -> str:
        return "the host's complex_values do not say how many GPUs it offers; see `gpu-nodeagent discover sge`"


@dataclass(frozen=True)
class Lowered:
    """What was done to an offer: it was `base`, and is to be `ours` while so many units are `out`.

    `known` of these the base has left out already: an administrator set it when they were out. Until `was` is `ours` as
    well the change may not have been made, and the host offers either.
    """

    base: int
    ours: int
    out: int
    known: int = 0
    was: int = 0


def withheld(units: tuple[UnitLine, ...], retired: Mapping[str, Mapping[str, str]], owners: Mapping[str, Owner]) -> int:
    """Return how many jobs fewer there is room for, by units that are faulty, held by hand, or retired and vanished."""
    by_hand = {unit: owner for unit, owner in owners.items() if owner.scheduler in (HOLD, MAINTENANCE, UNREADABLE)}
    held = Occupancy(by_hand, units)
    out = sum(unit.slots - (held.free(unit) if usable(unit, retired) else 0) for unit in units)
    return out + len(vanished(retired, units))


def lowered(before: Lowered | None, offered: int, out: int) -> Lowered:
    """Return what to make of a host that offers `offered`, while `out` are out of service.

    A number that is not as recorded is somebody else's, who knew what was out: it stays while no more are.
    """
    base, known = offered, 0
    if before is not None:
        mine = offered in (before.ours, before.was)
        base, known = (before.base, before.known) if mine else (offered, before.out)
    known = min(known, out)
    return Lowered(base, max(0, base - (out - known)), out, known, offered)


class LoweredFile:
    """The record of it, in `data_dir`: it has to outlive a reboot, as what the host offers does."""

    def __init__(self, data: Directory) -> None:
        self._data = data

    def read(self) -> Lowered | None:
        """Return it, if there is one.

        Raises:
            UnknownFormat, UntrustedFile, OSError: there is, and it cannot be read.

        """
        try:
            pairs = decode_pairs(_FILE, self._data.read(_FILE))
        except FileNotFoundError:
            return None
        try:
            return Lowered(**{name: int(pairs[name]) for name in _FIELDS})
        except (KeyError, ValueError) as error:
            raise UnknownFormat(_FILE, str(error)) from error

    def write(self, record: Lowered) -> None:
        """Write it so that it survives a power cut."""
        fields = [(name, str(getattr(record, name))) for name in _FIELDS]
        self._data.replace(_FILE, encode_pairs(fields), durable=True)

    def remove(self) -> None:
        """Forget it."""
        self._data.remove(_FILE)


class Capacity:
    """The agent's hand on one host's offer. What fails is tried again `pause` seconds later.

    Where it may not lower anything (any more) it gives back what it once took. It keeps no cycle waiting: a qmaster is
    asked in an errand.
    """

    def __init__(
        self,
        offer: Offer,
        file: LoweredFile,
        pause: float,
        clock: Clock,
        log: Log,
        errands: Errands,
        may_lower: bool = True,
    ) -> None:
        self._offer = offer
        self._file = file
        self._pause = pause
        self._may_lower = may_lower
        self._clock = clock
        self._log = log
        self._errands = errands
        self._not_before = float("-inf")
        self._said = ""

    def settle(
        self, units: tuple[UnitLine, ...], retired: Mapping[str, Mapping[str, str]], owners: Mapping[str, Owner]
    ) -> None:
        """Bring the offer in line with what is out of service; asks and changes nothing while it is.

        Without any unit nothing is known of the node, and what is offered stays.
        """
        now = self._clock.monotonic()
        if not units or now < self._not_before or self._errands.busy:
            return
        out = withheld(units, retired, owners) if self._may_lower else 0
        try:
            record = self._file.read()
        except (NodeAgentError, OSError) as error:
            self._complain(out, error)
            return
        if out == (record.out if record is not None else 0) and (record is None or record.was == record.ours):
            return
        self._not_before = now + self._pause
        self._errands.run(lambda: self._attempt(record, out))

    def _complain(self, out: int, error: Exception) -> None:
        if str(error) != self._said:
            self._log.error("capacity_failed", out=out, why=str(error))
        self._said = str(error)

    def _attempt(self, record: Lowered | None, out: int) -> None:
        try:
            self._change(record, out)
        except (NodeAgentError, OSError) as error:
            self._complain(out, error)
        else:
            self._not_before, self._said = float("-inf"), ""

    def _change(self, record: Lowered | None, out: int) -> None:
        offered = self._offer.offered()
        if offered is None:
            self._file.remove()
            if out:
                raise NothingOffered
            return
        new = lowered(record, offered, out)
        if record is not None and offered not in (record.ours, record.was):
            self._log.warning("capacity_of_others", offered=offered, ours=record.ours)
        if new.ours != offered:
            if out:
                self._file.write(new)
            self._offer.offer(new.ours)
            self._log.warning("capacity", offered=new.ours, before=offered, out=out)
        if out:
            self._file.write(replace(new, was=new.ours))
        else:  # only now: an agent that was killed in between finds that nothing is left to do
            self._file.remove()
