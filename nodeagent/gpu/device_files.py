"""Whether the GPUs' device files are there: /dev/nvidiaN beside /dev/nvidiactl. Opens none of them."""

from __future__ import annotations

import os
import stat

from nodeagent.gpu.facts import NodeFacts, altered


def with_device_files(facts: NodeFacts, dev: str) -> NodeFacts:
    """Return the facts with `device_file` of each GPU, as it is now below `dev`."""
    control = _kind(f"{dev}/nvidiactl")
    if not control:
        return facts  # nobody keeps the driver's files here, so none is missing
    gpus = (
        gpu if gpu.minor is None else altered(gpu, device_file=_kind(f"{dev}/nvidia{gpu.minor}") == control)
        for gpu in facts.gpus
    )
    return altered(facts, gpus=tuple(gpus))


def _kind(path: str) -> int:
    """The type of a file, links followed; 0 if there is none."""
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except OSError:
        return 0
