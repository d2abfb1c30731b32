"""One way to fail, with what has to become of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nodeagent.config.model import Health
from tests.corpus.world import World

Touch = Callable[[World, int], object]
SLOT = 2
"""The GPU that fails."""


def heal(world: World, slot: int) -> None:
    """Take back what the source was told, and what the GPU was held at."""
    world.source.heal()
    world.mend(slot)


@dataclass(frozen=True)
class Fault:
    """One way to fail: `plant` begins it and `clear` ends it, on the GPU in that slot.

    `check` is the one that has to find it, on that GPU (`on_node`: on the node), with the verdict `state` and the
    decision `leads_to` (empty: none) while it `lasts` (seconds). `returns` says that what was taken out comes back by
    itself when the fault has been cleared; one `from_start` was there before the agent. `fits` says whether a node can
    have it, `health` which settings differ.
    """

    name: str
    check: str
    plant: Touch
    clear: Touch = heal
    state: str = "FAILED"
    leads_to: str = "retire"
    on_node: bool = False
    lasts: float = 300.0
    returns: bool = True
    from_start: bool = False
    fits: Callable[[World], bool] = lambda world: True
    health: Callable[[World], Mapping[str, Any]] = field(default=lambda world: {})

    def settings(self, world: World) -> Health:
        """Return the settings under which it has to be found."""
        return Health(**self.health(world))
