"""What checks look at: this cycle's facts with every GPU put to the name it is remembered by. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nodeagent.config.model import Health
from nodeagent.gpu.facts import GpuFacts, NodeFacts, XidEvent
from nodeagent.health import sxid, xid
from nodeagent.health.ecc import watch
from nodeagent.health.memory import NODE, Latch, Memory, UnitMemory


@dataclass(frozen=True)
class Scene:
    """One cycle, identities resolved.

    `units` are all GPUs known in this boot with their memory brought up to date. `read` are those that this sweep
    reached (some of them with an error of their own). `nameless` GPUs were listed but have never told their UUID.
    `stopped` is the unit at which the probe hung or crashed, empty if at none that is known. `absent` are known units
    that a complete sweep did not list. `node` is the memory of the node as a whole, brought up to date likewise.
    """

    facts: NodeFacts
    units: Mapping[str, UnitMemory]
    read: Mapping[str, GpuFacts]
    nameless: tuple[GpuFacts, ...] = ()
    stopped: str = ""
    absent: frozenset[str] = frozenset()
    node: UnitMemory = NODE

    @property
    def complete(self) -> bool:
        """Whether the sweep reached its end, so that what is missing in it is missing."""
        return is_complete(self.facts)

    @property
    def module_missing(self) -> bool:
        """Whether NVML does not start, there are GPUs on the bus, and no kernel module that drives them."""
        facts = self.facts
        return facts.nvml_error is not None and bool(facts.pci) and not facts.kernel_driver

    @property
    def unread(self) -> tuple[str, ...]:
        """The known units of which this sweep says nothing because it was cut short."""
        return () if self.complete else tuple(uuid for uuid in self.units if uuid not in self.read)

    def without_gpus(self, settings: Health) -> bool:
        """Say whether this is a node without GPUs, on which nothing of NVIDIA's has to work."""
        if settings.expected_gpus >= 0:
            return settings.expected_gpus == 0 and not self.facts.gpus
        if self.units or self.facts.gpus:
            return False
        return self.facts.pci == {} or (self.facts.pci is None and self.complete)

    def unit_of(self, event: XidEvent) -> str:
        """Return the unit that an XID belongs to, empty if it is none that is known."""
        return event.uuid or _by_bus_id(self.units, event.bus_id)


def is_complete(facts: NodeFacts) -> bool:
    """Say whether the sweep reached its end."""
    return facts.nvml_error is None and facts.crashed is None and not facts.hung


def is_grave(event: XidEvent, settings: Health) -> bool:
    """Say whether an XID, or a switch's, condemns something by itself."""
    if event.kind == "sxid":
        return sxid.look_up(event.xid, event.text, settings.sxid_reach).reach is sxid.Reach.FABRIC
    return xid.latches(xid.look_up(event.xid, settings.xid_actions))


def observe(memory: Memory, facts: NodeFacts, settings: Health) -> Scene:
    """Bring the memory of each GPU up to date with what was read and tell who is where."""
    units = dict(memory.units)
    read: dict[str, GpuFacts] = {}
    nameless = []
    for gpu in facts.gpus:
        uuid = gpu.uuid or _by_bus_id(units, gpu.bus_id)
        if not uuid:
            nameless.append(gpu)
            continue
        units[uuid] = _seen(units.get(uuid, UnitMemory(uuid)), gpu, facts, settings)
        read[uuid] = gpu
    stopped = _stopped(units, read, facts)
    if stopped:
        read.pop(stopped, None)
        units.setdefault(stopped, UnitMemory(stopped, index=-1 if facts.hung_index is None else facts.hung_index))
    _latch(units, _fresh(facts, memory.units, units), facts, settings)
    complete = is_complete(facts)
    absent = frozenset(uuid for uuid in units if complete and uuid not in read)
    if complete:
        units = {uuid: replace(unit, absent=uuid in absent) for uuid, unit in units.items()}
    node = _latch_switches(memory, units, facts, settings)
    return Scene(facts, units, read, tuple(nameless), stopped, absent, node)


def overhear(memory: Memory, facts: NodeFacts, settings: Health) -> Scene:
    """Bring the memory up to date by the XIDs alone: no GPU has been asked, so none is absent and none was read."""
    units = dict(memory.units)
    _latch(units, _fresh(facts, memory.units, units), facts, settings)
    return Scene(facts, units, {}, node=_latch_switches(memory, units, facts, settings))


def _by_bus_id(units: Mapping[str, UnitMemory], bus_id: str) -> str:
    return next((uuid for uuid, unit in units.items() if bus_id and unit.bus_id == bus_id), "")


def _stopped(units: Mapping[str, UnitMemory], read: Mapping[str, GpuFacts], facts: NodeFacts) -> str:
    """The unit at which the probe got stuck or died."""
    if not facts.hung and facts.crashed is None:
        return ""
    if facts.hung_uuid or facts.hung_index is None:
        return facts.hung_uuid
    return next((uuid for uuid, unit in units.items() if unit.index == facts.hung_index and uuid not in read), "")


def _seen(unit: UnitMemory, gpu: GpuFacts, facts: NodeFacts, settings: Health) -> UnitMemory:
    """The unit after it was listed; values that are not known now keep their last ones."""
    restarted = initialised_anew(unit, gpu)
    energy = unit.energy if gpu.energy is None else gpu.energy
    latches = tuple(replace(latch, energy=energy) for latch in unit.latches if not _fell(latch.energy, gpu.energy))
    return replace(
        unit,
        index=unit.index if gpu.index is None else gpu.index,
        minor=unit.minor if gpu.minor is None else gpu.minor,
        bus_id=gpu.bus_id or unit.bus_id,
        model=gpu.name or unit.model,
        serial=gpu.serial or unit.serial,
        slot=gpu.slot or unit.slot,
        numa_node=unit.numa_node if gpu.numa_node is None else gpu.numa_node,
        energy=energy,
        latches=latches,
        nvlinks=max(0 if restarted else unit.nvlinks, 0 if gpu.mig_enabled else gpu.nvlink_active or 0),
        ecc=watch(unit.ecc, gpu.ecc_uncorrected, restarted, settings.uncorrected_ecc_per_hour, facts.monotonic),
    )


def initialised_anew(unit: UnitMemory, gpu: GpuFacts) -> bool:
    """Say whether the energy counter began again since the last reading: a reset, or the driver was loaded anew."""
    return _fell(unit.energy, gpu.energy)


def _fell(before: float | None, now: float | None) -> bool:
    """Whether the energy counter, which counts since the driver was last loaded (nvml.h), began again."""
    return before is not None and now is not None and now < before


def _fresh(facts: NodeFacts, before: Mapping[str, UnitMemory], units: Mapping[str, UnitMemory]) -> list[XidEvent]:
    """The XIDs of this cycle without the late ones of GPUs that were initialised anew meanwhile: they may be over."""

    def is_over(event: XidEvent) -> bool:
        uuid = event.uuid or _by_bus_id(units, event.bus_id)
        then = before[uuid].energy if uuid in before else None
        return event.late and _fell(then, units[uuid].energy if uuid in units else None)

    return [event for event in facts.xids if not is_over(event)]


def _latch(units: dict[str, UnitMemory], events: Sequence[XidEvent], facts: NodeFacts, settings: Health) -> None:
    """Remember the grave XIDs of this cycle at their units; the latest of a number replaces the one before."""
    for event in events:
        uuid = event.uuid or _by_bus_id(units, event.bus_id)
        if event.kind != "xid" or not uuid or not is_grave(event, settings):
            continue
        unit = units.get(uuid, UnitMemory(uuid, bus_id=event.bus_id))
        times = 1 + sum(old.times for old in unit.latches if old.xid == event.xid)
        latch = Latch(event.xid, event.monotonic, facts.boot_id, unit.energy, instance(event), times)
        others = tuple(old for old in unit.latches if old.xid != event.xid)
        units[uuid] = replace(unit, latches=(*others, latch))


def _latch_switches(memory: Memory, units: Mapping[str, UnitMemory], facts: NodeFacts, settings: Health) -> UnitMemory:
    """The node's memory with its switches' grave faults; one is over when no GPU is left that it still waits for."""
    anew = {
        uuid
        for uuid, unit in units.items()
        if unit.energy is not None and uuid in memory.units and _fell(memory.units[uuid].energy, unit.energy)
    }
    latches = []
    for old in memory.node.latches:
        waiting = tuple(uuid for uuid in old.waiting if uuid not in anew)
        if waiting:
            latches.append(replace(old, waiting=waiting))
    for event in facts.xids:
        if event.kind == "sxid" and is_grave(event, settings):
            same = [one for one in latches if (one.xid, one.where) == (event.xid, event.bus_id)]
            times = 1 + sum(one.times for one in same)
            latches = [one for one in latches if one not in same]
            waiting = tuple(units) or ("",)  # before any GPU was read, only another boot ends it
            latches.append(Latch(event.xid, event.monotonic, facts.boot_id, None, event.bus_id, times, waiting))
    return replace(memory.node, latches=tuple(latches))


def instance(event: XidEvent) -> str:
    """Return the MIG instance that an XID names, empty if it names none."""
    if event.gpu_instance is None:
        return ""
    compute = "" if event.compute_instance is None else f" CI {event.compute_instance}"
    return f"MIG GI {event.gpu_instance}{compute}"
