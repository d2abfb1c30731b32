"""What a scheduler is to be told so that it and this product work together: pieces ready to paste."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nodeagent.config.model import Config
from nodeagent.state.verdict_file import UnitLine

BUNDLE, SPREAD = "bundle", "spread"
PLACEMENTS = (BUNDLE, SPREAD)
HOOKS = "/usr/libexec/gpu-nodeagent"


@dataclass(frozen=True)
class Site:
    """What advice is made from.

    `node` is the scheduler's name for this node; `units` are those of the agent's last word, none without one;
    `config_path` is the configuration that hooks are to be told, empty for the installed one; `hooks` is where they
    are installed; `placement` is bundle or spread.
    """

    config: Config
    node: str
    units: Sequence[UnitLine] = ()
    config_path: str = ""
    hooks: str = HOOKS
    placement: str = BUNDLE

    def hook(self, name: str) -> str:
        """Return the command line of a hook, for schedulers that take one with arguments."""
        path = f"{self.hooks}/{name}"
        return f"{path} --config {self.config_path}" if self.config_path else path


@dataclass(frozen=True)
class Piece:
    """One thing to set: `name` for programs, `where` it goes (a file or a command), `text` to paste there, `why`."""

    name: str
    where: str
    text: str
    why: str


Adviser = Callable[[Site], list[Piece]]
"""One function a scheduler: asks nobody, changes nothing."""
