"""The GPUs' device files: /dev/nvidiaN and /dev/nvidiactl as they are. Opens none of them."""

from __future__ import annotations

import os
import stat

from nodeagent.gpu.facts import NodeFacts, altered
from nodeagent.gpu.host import DeviceFile


def with_device_files(facts: NodeFacts, dev: str) -> NodeFacts:
    """Return the facts with each GPU's device file, and /dev/nvidiactl, as they are now below `dev`."""
    gpus = (gpu if gpu.minor is None else altered(gpu, device=look(f"{dev}/nvidia{gpu.minor}")) for gpu in facts.gpus)
    return altered(facts, gpus=tuple(gpus), control=look(f"{dev}/nvidiactl"))


def look(path: str) -> DeviceFile:
    """Return what a file is, links followed; one without a kind where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return DeviceFile()
    kind = "c" if stat.S_ISCHR(found.st_mode) else "-" if stat.S_ISREG(found.st_mode) else "?"
    number = found.st_rdev
    return DeviceFile(kind, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, os.major(number), os.minor(number))
