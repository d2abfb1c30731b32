"""What the agent asks of a scheduler; one adapter each for Slurm, Grid Engine and none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from nodeagent.lock.record import Owner
from nodeagent.state.hook_conf import Gres

REASON_PREFIX = "gpu-nodeagent/1: "


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
        return bool(self.reason) and not str(self.reason).startswith("gpu-nodeagent/")


@dataclass(frozen=True)
class Fleet:
    """The nodes that share a limit: how many there are, and how many of them this product has drained."""

    nodes: int
    drained_by_us: int


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

    def fleet(self) -> Fleet:
        """Count the nodes that share this node's limit."""

    def drain_scope(self) -> str:
        """Return what a drain would close now, in the scheduler's own words: what a later `resume` may open again."""

    def drain(self, reason: str, scope: str) -> None:
        """Let running jobs end and start no new ones. The caller has looked at `node_state` just before."""

    def resume(self, scope: str) -> None:
        """Take jobs again: open what `drain` of that scope closed, and nothing that others closed."""

    def ended_here(self, owners: Iterable[Owner]) -> dict[str, str]:
        """Return grant → evidence, of those jobs of this scheduler that are over by what this node itself shows."""

    def ended(self, owners: Iterable[Owner]) -> dict[str, str]:
        """Return the same by the word of a controller: it is called seldom."""

    def gres(self) -> dict[int, Gres]:
        """Return what Slurm's GRES indices mean on this node; empty for others."""
