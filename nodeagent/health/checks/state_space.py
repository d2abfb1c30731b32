"""state-space: the agent's own state directory is full, or nearly so, or cannot be written.

Source: statvfs of `state_dir`.
Threshold: less than `health.state_space` (16 MiB: twice what waiting events may take) is left, or room for fewer than
256 files (a lock is two); for a fault 64 KiB, or two files.
Severity: WARNING on the node while there is some room; ERROR when none is left: then no lock can be taken.
Action: none: what fills it is somebody else's, for all that is ours there is bounded.
Clears: there is room again.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.gpu.host import Space
from nodeagent.health.finding import Finding, Severity
from nodeagent.health.scene import Scene

NAME = "state-space"
NO_BYTES, NO_FILES = 64 << 10, 2
FEW_FILES = 256
_KIB = 1 << 10


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield that the state directory has no room."""
    space = scene.facts.space
    if space is None:
        return
    if not space.writable:
        yield Finding(NAME, "", Severity.ERROR, "the state directory is read-only: no lock can be taken")
    elif _less(space, NO_BYTES, NO_FILES):
        yield Finding(NAME, "", Severity.ERROR, f"the state directory is full: {_left(space)}")
    elif _less(space, settings.state_space, FEW_FILES):
        yield Finding(NAME, "", Severity.WARNING, f"the state directory is nearly full: {_left(space)}")


def _less(space: Space, bytes_left: int, files: int) -> bool:
    return space.free < bytes_left or (space.files is not None and space.files < files)


def _left(space: Space) -> str:
    files = "" if space.files is None else f", {space.files} files"
    return f"{space.free // _KIB} KiB{files} left"
