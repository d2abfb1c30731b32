"""What each process of the race saw, on files that only grow, and the proof drawn from them afterwards."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from nodeagent.lock.record import HOLD, Owner
from nodeagent.lock.store import Store
from nodeagent.state.files import Directory

BEGIN, CLAIMED, RELEASING, FREEING, SWEPT = "B", "C", "R", "F", "S"
RETIRED, RESTORING, KILLED, WRONG, DID = "T", "U", "K", "V", "D"


class Log:
    """One process's witness: a line is one write, so a kill leaves it whole or absent.

    A line is `monotonic nanoseconds, code, fields`; CLOCK_MONOTONIC is the same for all processes of a machine.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def say(self, code: str, *fields: object) -> None:
        words = "\t".join(map(str, (time.monotonic_ns(), code, *fields)))
        os.write(self._fd, f"{words}\n".encode())


class WitnessedStore(Store):
    """The store, telling what it does while it holds the flock; each line errs on the side of a longer hold.

    A claim is written down after it was made, the freeing of a grant before: a process killed in between leaves the
    claim unproved or the unit still locked, never a unit that the witness takes for free while it is held twice.
    """

    __slots__ = ("_log",)

    def __init__(self, state: Directory, log: Log) -> None:
        super().__init__(state)
        self._log = log

    def claim(self, owner: Owner) -> None:
        super().claim(owner)
        self._log.say(CLAIMED, owner.grant, " ".join(owner.units))

    def release(self, mine: Callable[[Owner], bool]) -> dict[str, Owner]:
        told: set[str] = set()

        def witnessed(owner: Owner) -> bool:
            if not mine(owner):
                return False
            if owner.grant not in told:
                told.add(owner.grant)
                self._log.say(FREEING, owner.grant)
            return True

        return super().release(witnessed)

    def sweep(self) -> list[str]:
        swept = super().sweep()
        if swept:
            self._log.say(SWEPT, " ".join(swept))
        return swept

    def retire(self, unit: str, facts: Iterable[tuple[str, str]]) -> None:
        super().retire(unit, facts)
        self._log.say(RETIRED, unit)

    def restore(self, unit: str) -> bool:
        self._log.say(RESTORING, unit)
        return super().restore(unit)


class Proof:
    """Replays all logs in order of time against what must hold; `wrong` is empty when it held throughout."""

    def __init__(self, gpu_of: Mapping[str, str]) -> None:
        self.wrong: list[str] = []
        self.count: Counter[str] = Counter()
        self._gpu_of = gpu_of
        self._holder: dict[str, str] = {}
        self._units: dict[str, list[str]] = {}
        self._who: dict[str, tuple[str, str]] = {}
        self._retired: set[str] = set()
        self._killed: set[str] = set()

    def read(self, directory: Path) -> None:
        """Take all logs of a directory."""
        lines = []
        for path in sorted(directory.iterdir()):
            for line in path.read_text(errors="replace").splitlines():
                at, code, *fields = line.split("\t")
                lines.append((int(at), path.name, code, fields))
        lines.sort(key=lambda line: line[0])
        steps: dict[str, Callable[..., None]] = {
            BEGIN: self._begin,
            CLAIMED: self._claimed,
            RELEASING: self._releasing,
            FREEING: self._freeing,
            SWEPT: self._swept,
            RETIRED: self._retired.add,
            RESTORING: self._retired.discard,
            KILLED: self._kill,
            WRONG: self.wrong.append,
            DID: self._did,
        }
        for at, name, code, fields in lines:
            before = len(self.wrong)
            steps[code](*fields)
            if len(self.wrong) > before:
                self.wrong[-1] += f" [{name} at {at}]"

    def left(self) -> dict[str, str]:
        """Return unit → grant that is still held, going by the logs."""
        return dict(self._holder)

    def _begin(self, grant: str, scheduler: str, pid: str) -> None:
        self._who[grant] = scheduler, pid

    def _claimed(self, grant: str, words: str) -> None:
        units = words.split()
        scheduler, pid = self._who[grant]
        for unit in units:
            other = self._holder.get(unit)
            if other is not None:
                self.wrong.append(f"{unit} granted twice: to {other} of {self._who[other]}, then {grant} of {pid}")
            gpu = self._gpu_of.get(unit, unit)
            if scheduler != HOLD and gpu != unit and gpu in self._holder:
                self.wrong.append(f"{unit} granted although its GPU is held by {self._holder[gpu]}")
            if scheduler != HOLD and not self._retired.isdisjoint((unit, gpu)):
                self.wrong.append(f"{unit} granted although it is retired")
            self._holder[unit] = grant
        shares = [self._gpu_of[unit] for unit in units if "@" in unit]
        if len(set(shares)) < len(shares):
            self.wrong.append(f"{grant} has two shares of one GPU")
        self.count["shares granted"] += len(shares)
        self._units[grant] = units
        self.count["granted"] += len(units)

    def _let_go(self, grant: str) -> int:
        mine = [unit for unit in self._units.get(grant, ()) if self._holder.get(unit) == grant]
        for unit in mine:
            del self._holder[unit]
        return len(mine)

    def _releasing(self, grant: str) -> None:
        self.count["released"] += self._let_go(grant)

    def _freeing(self, grant: str) -> None:
        """Somebody frees a grant that its own job has not given back: only one whose process was killed."""
        freed = self._let_go(grant)
        scheduler, pid = self._who.get(grant, ("", ""))
        self.count["grants of the dead freed"] += pid in self._killed
        if freed and (pid not in self._killed or scheduler == HOLD):
            self.wrong.append(f"{grant} ({scheduler}) of {pid}, which lives or is a hold, was freed by somebody else")

    def _swept(self, words: str) -> None:
        self.count["swept"] += len(words.split())
        self.wrong += [f"{unit} was swept although it is held" for unit in words.split() if unit in self._holder]

    def _kill(self, pid: str) -> None:
        self._killed.add(pid)
        self.count["killed"] += 1

    def _did(self, what: str, how_often: str) -> None:
        self.count[what] += int(how_often)
