"""Which units a GPU is for locks: itself, or its instances in MIG mode."""

from __future__ import annotations

from collections.abc import Mapping

from nodeagent.gpu.facts import GpuFacts, MigInstance

Instances = Mapping[str, tuple[MigInstance, ...]]
"""UUID of each GPU in MIG mode → its instances (none, where none is made)."""


def mig_instances(gpus: tuple[GpuFacts, ...], before: Instances) -> Instances:
    """Return the instances of all GPUs in MIG mode: as read, or as before where a GPU's mode could not be read now.

    A GPU that a short sweep did not reach must not turn into a whole, free GPU: jobs run on its instances.
    """
    found = dict(before)
    for gpu in gpus:
        if gpu.mig_enabled:
            found[gpu.uuid] = gpu.mig
        elif gpu.mig_enabled is False:
            found.pop(gpu.uuid, None)
    return found


def units_of(uuid: str, instances: Instances) -> tuple[str, ...]:
    """Return what of this GPU can be locked."""
    if uuid not in instances:
        return (uuid,)
    return tuple(instance.uuid for instance in instances[uuid])
