"""Which locks outlived their owner: freed only when it is surely gone. Lean."""

from nodeagent.lock.record import CLEANING, HOLD, MAINTENANCE, UNREADABLE, Owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def gone(
    owners: "Mapping[str, Owner]",
    boot_id: str,
    start_of: "Callable[[str], str]",
    ended: "Mapping[str, str] | None" = None,
) -> "dict[str, str]":
    """Return the grants that are over, with the reason: pure, the caller frees them under the flock.

    Args:
        owners: unit → owner, as the store gave them under the flock.
        boot_id: of the running kernel; empty when it could not be read (then nothing is judged by it).
        start_of: pid → start time, empty if that process is gone.
        ended: grant → reason, of those whose job the scheduler's own evidence says is over.

    A grant is over when it is from another boot, when the process of an `exec` is gone, or when it is incomplete
    (its hook was killed between two units) and the hook that was writing it is gone. What is being cleaned is over
    only with its boot: whoever cleans it gives it back.

    """
    over = {}
    for owner in owners.values():
        if owner.scheduler in (HOLD, MAINTENANCE, UNREADABLE):
            continue
        dead = bool(owner.pid) and start_of(owner.pid) != owner.pid_start
        if boot_id and owner.boot_id and owner.boot_id != boot_id:
            over[owner.grant] = "it is from another boot"
        elif owner.scheduler == CLEANING:
            continue
        elif ended and owner.grant in ended:
            over[owner.grant] = ended[owner.grant]
        elif owner.scheduler == "local" and dead:
            over[owner.grant] = f"its process {owner.pid} is gone"
        elif dead and not all(unit in owners and _may_be(owners[unit], owner) for unit in owner.units):
            over[owner.grant] = f"it is incomplete and its hook {owner.pid} is gone"
    return over


def _may_be(found: Owner, owner: Owner) -> bool:
    """Say whether a unit of the grant is still locked by it; one that cannot be read counts as locked."""
    return found.grant == owner.grant or found.scheduler == UNREADABLE
