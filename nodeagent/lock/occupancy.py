"""What of a GPU is free, whatever form it had when others took theirs: whole, instances, shares. Lean.

A GPU changes its form under live locks: an administrator turns MIG mode on or off, or another number of shares is
configured. A lock of the old form goes on to count until its job ends, and these rules make that no GPU is granted
twice:

- the whole GPU is free if nothing of it is held, in any form;
- an instance is free if neither itself nor the whole GPU nor a share of it is held (other instances are no matter);
- of K shares one is free if neither the whole GPU nor an instance of it is held, and fewer than K shares are: one that
  is beyond K counts too.
"""

from nodeagent.lock.unit import is_share, share
from nodeagent.state.verdict_file import DEGRADED, OK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nodeagent.lock.record import Owner
    from nodeagent.state.verdict_file import UnitLine


class Occupancy:
    """The held units by the GPU that they are of.

    An instance's GPU is what the verdict says, or the owner's record of an instance that is no more. Of neither (a lock
    that an older release made, on an instance that has vanished) nothing but its own name is known to be held.
    """

    __slots__ = ("_held",)

    def __init__(self, owners: "Mapping[str, Owner]", lines: "Iterable[UnitLine]") -> None:
        parents = {line.unit: line.gpu for line in lines}
        self._held: dict[str, list[str]] = {}
        for unit, owner in sorted(owners.items()):  # a GPU's own name comes first, so does what an administrator held
            gpu = parents.get(unit) or owner.gpu_of(unit)
            self._held.setdefault(gpu, []).append(unit)

    def take(self, line: "UnitLine") -> "tuple[str, str]":
        """Return the unit to lock for one more job on this line, and nothing, or nothing and the unit in the way."""
        held = self._held.get(line.gpu, [])
        if line.unit != line.gpu:
            of_instance = [unit for unit in held if unit == line.unit or unit.startswith("GPU-")]
            of_instance.sort(key=lambda unit: unit != line.unit)
            return ("", of_instance[0]) if of_instance else (line.unit, "")
        if line.slots <= 1:
            return ("", held[0]) if held else (line.unit, "")
        other = [unit for unit in held if not is_share(unit)]
        if other or len(held) >= line.slots:
            return "", (other or held)[0]
        return next(name for name in (share(line.gpu, k) for k in range(line.slots)) if name not in held), ""

    def free(self, line: "UnitLine") -> int:
        """Return how many more jobs the line can take."""
        if not self.take(line)[0]:
            return 0
        return line.slots - len(self._held.get(line.gpu, ())) if line.slots > 1 else 1


def part(line: "UnitLine", unit: str) -> "UnitLine":
    """Return the line under the name that is locked of it: the line itself, or one of its shares."""
    taken = line.copy()
    taken.unit = unit
    return taken


def with_slots(line: "UnitLine", slots: int) -> "UnitLine":
    """Return the line of a GPU that so many jobs may share."""
    shared = line.copy()
    shared.slots = slots
    return shared


def named(line: "UnitLine", names: "Mapping[str, object]") -> str:
    """Return by which name a line stands there: its own, or that of the GPU it is an instance of; empty if by none."""
    return line.unit if line.unit in names else line.gpu if line.gpu in names else ""


def usable(line: "UnitLine", retired: "Mapping[str, object]") -> bool:
    """Say whether jobs may get the unit at all: it is well enough and not retired."""
    return line.state in (OK, DEGRADED) and not named(line, retired)


def vanished(retired: "Iterable[str]", lines: "Iterable[UnitLine]") -> "list[str]":
    """Return what is retired and not there any more, as a GPU that fell off the bus is after a reboot."""
    names = {name for line in lines for name in (line.unit, line.gpu)}
    return sorted(unit for unit in retired if unit not in names)
