"""What a cycle touches outside itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from nodeagent.agent.actions import Actions
from nodeagent.agent.capacity import Capacity
from nodeagent.agent.errand import AtOnce, Errands
from nodeagent.agent.journal import Log
from nodeagent.clock import Clock
from nodeagent.gpu.facts import GpuSource
from nodeagent.history.entry import History, NoHistory
from nodeagent.scheduler.port import Scheduler
from nodeagent.scheduler.slurm_holder import HolderPort
from nodeagent.state.files import Directory


class HookConfWriter(Protocol):
    """Writes hook.conf. `complete` is false while the scheduler has not told all that goes into it."""

    complete: bool

    def __call__(self) -> None:
        """Ask again and write."""


@dataclass
class Ports:
    """What a cycle touches outside itself.

    `holders`: where Slurm can have jobs hold GPUs; that is asked in errands of its own, as no drain is to wait for it.
    """

    state: Directory
    source: GpuSource
    scheduler: Scheduler
    actions: Actions
    clock: Clock
    log: Log
    hook_conf: HookConfWriter
    history: History = field(default_factory=NoHistory)
    errands: Errands = field(default_factory=AtOnce)
    holders: HolderPort | None = None
    holder_errands: Errands = field(default_factory=AtOnce)
    capacity: Capacity | None = None
    """Where what the host offers is for the agent to lower."""
