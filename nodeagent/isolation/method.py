"""What each way of keeping a process off devices can do; the three are in modules of their own. Lean."""

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from nodeagent.isolation.devices import Device
    from nodeagent.isolation.record import Confinement


class Method:
    """One way. The order of calls: why_not, plan, (the record is written), close, `become` in a test, enter; undo."""

    __slots__ = ()
    name = ""
    refused = errno.EPERM
    """What opening a closed device fails with."""
    node_wide = False
    """Whether it changes the devices for the whole node: then the grant's own too, and under the flock."""

    def why_not(self, pid: int) -> str:
        """Return why it cannot be had on this node for that process; empty if it can."""
        raise NotImplementedError

    def plan(self, grant: "Confinement", pid: int, own: "Sequence[Device]") -> None:
        """Write into the record what is going to be made or changed. Changes nothing."""
        raise NotImplementedError

    def close(self, grant: "Confinement", others: "Sequence[Device]", spared: "Sequence[Device]") -> "list[Device]":
        """Close `others` to the grant, and not `spared`; return those that are now to be refused.

        Raises:
            NotIsolated, OSError: it cannot be done.

        """
        raise NotImplementedError

    def become(self, grant: "Confinement") -> None:
        """Confine this very process as the job's are going to be: for the test."""
        raise NotImplementedError

    def enter(self, grant: "Confinement", pid: int) -> None:
        """Confine the process, and with it all that it starts from now on.

        Raises:
            NotIsolated, OSError: it is not confined.

        """
        raise NotImplementedError

    def leave(self, grant: "Confinement") -> None:
        """Take this process and those that it descends from out again, if they are in."""
        raise NotImplementedError

    def undo(self, grant: "Confinement", taken: "Collection[str]") -> bool:
        """Remove what was made; False if it is still in use. `taken` are units that other grants hold now."""
        raise NotImplementedError
