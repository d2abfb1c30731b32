"""What the agent asks of a scheduler; one adapter each for Slurm, Grid Engine and none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nodeagent.lock.record import Owner
from nodeagent.scheduler.reason import is_ours
from nodeagent.scheduler.turn import Turn
from nodeagent.state.hook_conf import Gres


@dataclass(frozen=True)
class NodeState:
    """Whether the scheduler sends jobs to this node: `drained` also when it is down or has failed.

    `reason` is what stands there now, ours or somebody else's; None where the scheduler keeps no reasons.
    """

    drained: bool
    reason: str | None = ""

    @property
    def foreign(self) -> bool:
        """Whether somebody else wrote the reason: then it is neither overwritten nor taken back."""
        return bool(self.reason) and not is_ours(self.reason)


@dataclass(frozen=True)
class Fleet:
    """The nodes that share a limit, by their name: how many there are, and how many others this product has out.

    Those are drained by us now or, where the scheduler can tell, were within `limits.window`. The node that asks is
    one of `nodes`, and not counted among the drained.
    """

    nodes: int
    drained_by_us: int
    name: str = "the cluster"


class Scheduler(Protocol):
    """The scheduler as this node sees it. Every method may raise CommandFailed and ends within its time-out."""

    name: str

    @property
    def spares_units(self) -> bool:
        """Whether it can be told now to spare one GPU and keep the node."""

    def node_state(self) -> NodeState:
        """Return whether this node takes jobs."""

    def granted(self, owner: Owner) -> tuple[int, ...] | None:
        """Return the GRES indices that Slurm gave this job on this node; None where it has none here now, or others.

        Raises:
            AmbiguousAnswer: a user's text in the answer looks like the answer itself.

        """

    def fleets(self) -> tuple[Fleet, ...]:
        """Count the nodes that share a limit with this one, as `limits.per` says; each of them has to have room."""

    def turn(self) -> Turn:
        """Return this node's turn at counting and draining, to be entered: while it has it, no other node does."""

    def drain_scope(self) -> str:
        """Return what a drain would close now, in the scheduler's own words: what a later `resume` may open again."""

    def drain(self, reason: str, scope: str) -> str:
        """Let running jobs end and start no new ones; return what of the scope this has closed, and nobody else had.

        Raises:
            NodeTaken: somebody else has the node: it is as they left it.

        """

    def resume(self, scope: str) -> None:
        """Take jobs again: open what `drain` of that scope closed, and nothing that others closed.

        Raises:
            NodeTaken: somebody else has the node: it is as they left it.

        """

    def ended_here(self, owners: Iterable[Owner]) -> dict[str, str]:
        """Return grant → evidence, of those jobs of this scheduler that are over by what this node itself shows."""

    def ended(self, owners: Iterable[Owner]) -> dict[str, str]:
        """Return the same by the word of a controller: it is called seldom."""

    def gres(self) -> dict[int, Gres]:
        """Return what Slurm's GRES indices mean on this node; empty for others."""


@runtime_checkable
class Reboots(Protocol):
    """A scheduler that can have a node rebooted. May raise CommandFailed."""

    def reboot(self, reason: str) -> None:
        """Have this node rebooted when its jobs are over, and take jobs again after that."""
