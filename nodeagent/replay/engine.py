"""Recorded facts through the engine that the agent runs: facts → findings → verdict → decisions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from nodeagent.agent.decider import Decider
from nodeagent.config.model import Config
from nodeagent.health.verdict import Memory, Verdict, judge
from nodeagent.policy.decide import Decision
from nodeagent.replay.node import RememberedNode
from nodeagent.replay.recording import Recorded

SPARING = ("sge", "local")
"""Schedulers that can spare one GPU and keep the node."""


@dataclass(frozen=True)
class Step:
    """What one recorded sweep led to."""

    at: float
    boot_id: str
    verdict: Verdict
    decisions: tuple[Decision, ...]


def replay(sweeps: Iterable[Recorded], config: Config, interval: float) -> Iterator[Step]:
    """Yield what the agent would have thought and done with that configuration, `interval` seconds between sweeps.

    It begins with an agent that knows nothing and a node that is in service; another boot starts a new agent, which
    finds what was retired and drained before. Every decision is carried out at once, on values: no limit refuses a
    drain, and `policy.dry_run` is not asked.
    """
    config = replace(config, interval=interval, policy=replace(config.policy, dry_run=False))
    node = RememberedNode(config.scheduler.kind in SPARING or config.scheduler.slurm.retire == "holder")
    hands = _Hands()
    memory = Memory()
    decider: Decider | None = None
    for recorded in sweeps:
        facts = recorded.facts
        if decider is None or facts.boot_id != node.boot_id:
            decider = Decider(config, node, node.commands, hands, _Mute())
            node.commands.begun.clear()  # what says so is gone with the boot
        node.boot_id, hands.now = facts.boot_id, recorded.at
        verdict, memory = judge(memory, facts, config.health)
        decider.act(verdict)
        yield Step(recorded.at, facts.boot_id, verdict, tuple(node.done))
        node.done.clear()


class _Hands:
    """A clock that stands where the recording is."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


class _Mute:
    """A log for nobody: what is decided is read from the node."""

    def warning(self, event: str, **fields: object) -> None:
        pass

    error = warning
