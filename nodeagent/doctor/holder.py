"""Whether a retired GPU of a Slurm node can be held by a suspended job, where that is wanted, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.doctor.line import OK, WARN, Line, Look
from nodeagent.errors import CommandFailed


def holder(look: Look) -> Iterator[Line]:
    """What becomes of the node when one of its GPUs is retired."""
    if look.config.scheduler.kind != "slurm":
        return
    name, slurm = "slurm-holder", look.config.scheduler.slurm
    if slurm.retire != "holder":
        yield Line(name, OK, "not wanted: a retired GPU drains the node (scheduler.slurm.retire: drain)")
        return
    try:
        why, remedy = look.no_holder()
    except CommandFailed as error:
        yield Line(name, WARN, f"not known: {error}", "make `scontrol show partition` work on this node")
        return
    if why:
        yield Line(name, WARN, f"a retired GPU drains the node: {why}", remedy)
    else:
        yield Line(name, OK, f"a retired GPU is held by a suspended job in {slurm.hold_partition}, the node stays")
