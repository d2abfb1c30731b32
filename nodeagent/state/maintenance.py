"""Maintenance: an administrator's word, kept in `data_dir`: the agent takes nothing out and brings nothing back."""

from __future__ import annotations

from dataclasses import dataclass

from nodeagent.errors import UnknownFormat, UntrustedFile
from nodeagent.state.files import Directory, decode_pairs, encode_pairs

_FILE = "maintenance"


@dataclass(frozen=True)
class Maintenance:
    """Who wants it, why, since when and until when.

    `since` and `until` (0: until it is ended) are wall time in seconds: it is to outlast a reboot, and no other clock
    does. So a clock that is set meanwhile moves its end. `drained` is the reason of the drain that was made for it,
    empty for none: that one ends with it.
    """

    who: str = ""
    why: str = ""
    since: float = 0.0
    until: float = 0.0
    drained: str = ""

    def is_over(self, wall: float) -> bool:
        """Say whether its time is over."""
        return 0 < self.until <= wall


def read_maintenance(data: Directory) -> Maintenance | None:
    """Return what is recorded, None for nothing.

    A record that makes no sense counts: somebody has asked for hands off, and may have the GPUs' covers open. A disk
    that does not answer is none: it must not keep a dying GPU in service.
    """
    try:
        pairs = decode_pairs(_FILE, data.read(_FILE))
        times = {name: float(pairs[name]) for name in ("since", "until")}
        return Maintenance(pairs["who"], pairs["why"], drained=pairs["drained"], **times)
    except OSError:
        return None
    except (UnknownFormat, UntrustedFile, KeyError, ValueError) as error:
        return Maintenance(why=f"unreadable record: {error}")


def standing(recorded: Maintenance | None, wall: float) -> Maintenance | None:
    """Return what is recorded, if its time is not over."""
    return None if recorded is None or recorded.is_over(wall) else recorded


def write_maintenance(data: Directory, maintenance: Maintenance) -> None:
    """Record it so that it survives a power cut."""
    one = maintenance
    times = {"since": f"{one.since:.3f}", "until": f"{one.until:.3f}"}
    pairs = {"who": one.who, "why": one.why, **times, "drained": one.drained}
    data.replace(_FILE, encode_pairs(pairs.items()), durable=True)


def drop_maintenance(data: Directory) -> None:
    """Forget it."""
    data.remove(_FILE)
