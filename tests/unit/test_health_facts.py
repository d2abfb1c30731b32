"""Facts for the health tests, and how GPUs are put to the names they are remembered by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nodeagent.config.model import Health
from nodeagent.gpu.facts import GpuFacts, NodeFacts, XidEvent
from nodeagent.health.memory import Memory
from nodeagent.health.scene import observe
from nodeagent.health.verdict import UnitVerdict, Verdict, judge

SETTINGS = Health()
BOOT = "boot-a"


def uuid(number: int) -> str:
    return f"GPU-{number:08x}"


def bus(number: int) -> str:
    return f"0000:{0x10 + number:02x}:00.0"


def gpu(number: int, **values: object) -> GpuFacts:
    """Return a healthy GPU; `values` are what is otherwise."""
    facts = GpuFacts(
        uuid=uuid(number),
        index=number,
        minor=number,
        bus_id=bus(number),
        name="NVIDIA H100",
        serial=f"S{number}",
        numa_node=0,
        energy=1000.0,
        ecc_uncorrected=0,
        recovery_action=0,
    )
    return replace(facts, **values)  # type: ignore[arg-type]


def lost(number: int, code: int = 15) -> GpuFacts:
    """Return what is left of a GPU that answers nothing but an error."""
    return GpuFacts(uuid=uuid(number), index=number, bus_id=bus(number), error=code, error_text="GPU is lost")


def node(*gpus: GpuFacts, **values: object) -> NodeFacts:
    """Return a complete sweep over these GPUs."""
    facts = NodeFacts(
        boot_id=BOOT, monotonic=0.0, driver="550.1", kernel_driver="550.1", gpus=gpus, pci=on_bus(len(gpus))
    )
    return replace(facts, **values)  # type: ignore[arg-type]


def xid(number: int, code: int, **values: object) -> XidEvent:
    return replace(XidEvent(uuid(number), code, 0.0, bus_id=bus(number)), **values)  # type: ignore[arg-type]


def on_bus(count: int | None) -> dict[str, str] | None:
    """Return the GPUs on the PCI bus: those of the driver's first, further ones at places of their own."""
    return None if count is None else {bus(number): "nvidia" for number in range(count)}


class Cycles:
    """Judges one sweep after another, ten seconds apart."""

    def __init__(self, settings: Health = SETTINGS, memory: Memory | None = None) -> None:
        self.settings = settings
        self.memory = Memory() if memory is None else memory
        self.now = 100.0
        self.verdict = Verdict("", 0.0)

    def see(self, *gpus: GpuFacts, **values: object) -> Verdict:
        return self.judge(node(*gpus, **values))

    def judge(self, facts: NodeFacts) -> Verdict:
        self.now += 10.0
        self.verdict, self.memory = judge(self.memory, replace(facts, monotonic=self.now), self.settings)
        return self.verdict

    def unit(self, number: int) -> UnitVerdict:
        return next(unit for unit in self.verdict.units if unit.uuid == uuid(number))

    def state(self, number: int) -> str:
        return self.unit(number).state

    def states(self) -> list[str]:
        return [unit.state for unit in self.verdict.units]


def checks_of(reasons: Sequence[object]) -> list[str]:
    return [reason.check for reason in reasons]  # type: ignore[attr-defined]


def test_a_lost_gpu_without_uuid_is_known_again_by_its_bus_id() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), gpu(1))
    scene = observe(cycles.memory, node(gpu(0), replace(lost(1), uuid="")), SETTINGS)
    assert set(scene.read) == {uuid(0), uuid(1)}
    assert scene.nameless == ()
    assert scene.absent == frozenset()


def test_a_gpu_that_never_told_its_uuid_is_nameless() -> None:
    scene = observe(Memory(), node(gpu(0), replace(lost(1), uuid="")), SETTINGS)
    assert [one.index for one in scene.nameless] == [1]
    assert set(scene.units) == {uuid(0)}


def test_what_a_cut_sweep_did_not_list_is_not_absent() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), gpu(1))
    cut = observe(cycles.memory, node(gpu(0), hung=True, hung_uuid=uuid(1)), SETTINGS)
    assert (cut.absent, cut.unread, cut.stopped) == (frozenset(), (uuid(1),), uuid(1))
    whole = observe(cycles.memory, node(gpu(0)), SETTINGS)
    assert (whole.absent, whole.unread) == (frozenset({uuid(1)}), ())


def test_a_hang_told_by_index_is_put_to_the_unit_of_that_index_that_was_not_read() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), gpu(1))
    scene = observe(cycles.memory, node(gpu(0), hung=True, hung_index=1), SETTINGS)
    assert scene.stopped == uuid(1)
    assert observe(cycles.memory, node(gpu(1), hung=True, hung_index=1), SETTINGS).stopped == ""


def test_a_gpu_that_hangs_half_read_counts_as_not_read() -> None:
    scene = observe(Memory(), node(gpu(0), gpu(1), hung=True, hung_uuid=uuid(1)), SETTINGS)
    assert set(scene.read) == {uuid(0)}


def test_identity_keeps_the_last_values_that_were_known() -> None:
    cycles = Cycles()
    cycles.see(gpu(0))
    cycles.see(replace(lost(0), index=None, bus_id=""))
    unit = cycles.unit(0)
    assert (unit.index, unit.minor, unit.bus_id) == (0, 0, bus(0))
    assert (unit.model, unit.serial, unit.numa_node) == ("NVIDIA H100", "S0", 0)
