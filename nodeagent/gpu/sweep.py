"""From the probe process's lines to NodeFacts: one sweep, complete or cut short. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from nodeagent.gpu.facts import GpuFacts, MigInstance, NodeFacts, Process, altered
from nodeagent.gpu.host import DeviceRule, Port
from nodeagent.gpu.topology import NvLink, Place, link_qualities

Spot = tuple[str, int]
"""Where a sweep was: (UUID, empty if never read; NVML's index)."""

_GPU_FIELDS = frozenset(field.name for field in fields(GpuFacts))


class Sweep:
    """Takes the probe's messages in the order in which they come; `facts` may be asked for at any time.

    A GPU that was begun and not finished is where the probe is now: `at`, as (UUID, index), None between GPUs.
    """

    def __init__(self) -> None:
        self.heard = False
        """Whether the probe has said anything."""
        self.ended = False
        self.at: Spot | None = None
        self.read: list[Spot] = []
        """(UUID, index) of each GPU that was answered for, its faults included."""
        self.tended: dict[str, Any] | None = None
        """The answer to a tend."""
        self._host: dict[str, Any] = {}
        self._node: dict[str, Any] = {}
        self._gpus: list[GpuFacts] = []
        self._places: dict[str, Place] = {}

    def take(self, message: Mapping[str, Any]) -> None:
        """Take up one message; those that are no part of a sweep are passed over."""
        self.heard = True
        if "host" in message:
            self._host = _decode_host(message["host"])
        elif "node" in message:
            self._node = message["node"]
        elif "begin" in message:
            begin = message["begin"]
            self.at = (begin["uuid"], begin["index"])
        elif "gpu" in message:
            self._take_gpu(message["gpu"])
        elif "tended" in message:
            self.tended = message["tended"]
        elif "end" in message:
            self.ended = True
            self.at = None

    def _take_gpu(self, record: Mapping[str, Any]) -> None:
        gpu = decode_gpu(record)
        self._gpus.append(gpu)
        self.at = None
        self.read.append((gpu.uuid, -1 if gpu.index is None else gpu.index))
        if gpu.error is None and gpu.bus_id:
            self._places[gpu.bus_id] = decode_place(record)

    def facts(self, boot_id: str, monotonic: float, duration: float) -> NodeFacts:
        """Return what is known now. Where NVML failed as a whole there are no GPUs."""
        gpus: tuple[GpuFacts, ...] = ()
        if self._node.get("nvml_error") is None:
            links = link_qualities(self._places)
            read = (altered(gpu, links=links.get(gpu.bus_id, {})) for gpu in settle(self._gpus))
            gpus = tuple(sorted(read, key=lambda gpu: -1 if gpu.index is None else gpu.index))
        return NodeFacts(
            boot_id=boot_id, monotonic=monotonic, duration=duration, gpus=gpus, **{**self._host, **self._node}
        )


def located(
    facts: NodeFacts, sweep: Sweep, crashed: int | None, stuck: Sequence[Spot | None], no_worker: bool
) -> NodeFacts:
    """Say where the sweep stopped short, or that it had to pass over a GPU at which an old probe still hangs.

    `crashed` is the signal by which the probe ended, `stuck` is where those in state D are; with `no_worker` there is
    no other.
    """
    spot = sweep.at
    if sweep.ended:
        spot = next((spot for spot in reversed(stuck) if spot is not None), None)
    elif spot is None and no_worker and stuck:
        spot = stuck[-1]
    hung = crashed is None and (not sweep.ended or spot is not None)
    if spot is None:
        return altered(facts, hung=hung, crashed=crashed)
    return altered(facts, hung=hung, crashed=crashed, hung_uuid=spot[0], hung_index=spot[1])


def _decode_host(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of NodeFacts in the host's record."""
    rule = record.get("device_rule")
    return {
        **record,
        "ports": tuple(Port(**port) for port in record.get("ports", ())),
        "device_rule": None
        if rule is None
        else DeviceRule(bool(rule["modify"]), rule["mode"], rule["uid"], rule["gid"]),
    }


def decode_gpu(record: Mapping[str, Any]) -> GpuFacts:
    """Return the facts in a record of the probe; keys that are no fields of GpuFacts are for others."""
    values = {key: value for key, value in record.items() if key in _GPU_FIELDS and value is not None}
    values["mig"] = tuple(
        MigInstance(**{**instance, "caps": tuple(instance.get("caps", ()))}) for instance in record.get("mig", ())
    )
    values["processes"] = tuple(Process(**process) for process in record.get("processes", ()))
    return GpuFacts(**{"uuid": "", **values})


def decode_place(record: Mapping[str, Any]) -> Place:
    """Return the GPU's connections in a record of the probe."""
    links: Iterable[Sequence[Any]] = record.get("nvlinks", ())
    ancestors: Mapping[str, int] = record.get("ancestors", {})
    return Place(
        nvlinks=tuple(NvLink(version, kind, bus_id) for version, kind, bus_id in links),
        ancestors={bus_id: level for bus_id, level in ancestors.items() if level >= 0},
    )


def settle(gpus: Sequence[GpuFacts]) -> list[GpuFacts]:
    """Take back a faulty GPU's identity if another GPU of the same sweep has proved to be that one.

    A faulty GPU's identity is remembered by its place, and places shift.
    """
    proven = {gpu.uuid for gpu in gpus if gpu.error is None and gpu.uuid}
    return [
        altered(gpu, uuid="", bus_id="", serial="", minor=None) if gpu.error is not None and gpu.uuid in proven else gpu
        for gpu in gpus
    ]
