"""What a sweep makes of what is remembered: who is where, what is kept, which XIDs stay, what starts anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nodeagent.config.model import Health
from nodeagent.gpu.facts import GpuFacts, NodeFacts, XidEvent
from nodeagent.health.memory import EccWatch, Latch, Memory, UnitMemory
from nodeagent.health.scene import Scene, initialised_anew, instance, observe
from tests.unit.test_health_facts import BOOT, bus, gpu, lost, node, on_bus, uuid, xid

SETTINGS = Health()
KNOWN = UnitMemory(uuid(0), 0, 0, bus(0), "NVIDIA H100", "S0", "", 0, "OK", 50.0, energy=1000.0, nvlinks=18)
OTHER = UnitMemory(uuid(1), 1, 1, bus(1), "NVIDIA H100", "S1", "", 0, "OK", 50.0, energy=1000.0)
MEMORY = Memory(BOOT, units={uuid(0): KNOWN, uuid(1): OTHER})


def seen(facts: NodeFacts, memory: Memory = MEMORY, settings: Health = SETTINGS) -> Scene:
    return observe(memory, facts, settings)


def unit(value: GpuFacts, before: UnitMemory = KNOWN, **facts: Any) -> UnitMemory:
    """Return the first GPU as it is remembered after it was read so."""
    return seen(node(value, **facts), Memory(BOOT, units={uuid(0): before})).units[uuid(0)]


def test_what_is_read_replaces_what_was_known() -> None:
    read = gpu(0, index=5, minor=6, bus_id=bus(9), name="NVIDIA H200", serial="T", slot="4", numa_node=1, energy=1001.0)
    assert unit(read) == replace(
        UnitMemory(uuid(0), 5, 6, bus(9), "NVIDIA H200", "T", "4", 1, "OK", 50.0, energy=1001.0, nvlinks=18),
        ecc=EccWatch(0, 0, 0.0),
    )


def test_what_is_not_read_stays_as_it_was() -> None:
    assert unit(GpuFacts(uuid(0))) == KNOWN
    assert unit(gpu(0, index=0, minor=0, numa_node=0, ecc_uncorrected=None), replace(KNOWN, index=3, minor=3)) == KNOWN


def test_a_gpu_that_is_new_is_known_by_what_it_says() -> None:
    scene = seen(node(gpu(7, numa_node=2, nvlink_active=4)), Memory())
    assert scene.units == {
        uuid(7): replace(
            UnitMemory(uuid(7), 7, 7, bus(7), "NVIDIA H100", "S7", "", 2, energy=1000.0, nvlinks=4),
            ecc=EccWatch(0, 0, 0.0),
        )
    }
    assert (scene.read, scene.nameless, scene.stopped, scene.absent) == (
        {uuid(7): gpu(7, numa_node=2, nvlink_active=4)},
        (),
        "",
        frozenset(),
    )


@pytest.mark.parametrize(
    ("value", "most"),
    [
        ({"nvlink_active": 17}, 18),
        ({"nvlink_active": 19}, 19),
        ({"nvlink_active": None}, 18),
        ({"nvlink_active": 19, "mig_enabled": True}, 18),
        ({"nvlink_active": 19, "mig_enabled": True, "energy": 999.0}, 0),
        ({"nvlink_active": 12, "energy": 999.0}, 12),
        ({"nvlink_active": None, "energy": 999.0}, 0),
        ({"nvlink_active": 12, "energy": 1000.0}, 18),
    ],
)
def test_the_most_links_that_were_up_since_the_gpu_was_initialised(value: dict[str, Any], most: int) -> None:
    assert unit(gpu(0, **value)).nvlinks == most


@pytest.mark.parametrize(
    ("before", "now", "anew"),
    [
        (1000.0, 999.9, True),
        (1000.0, 1000.0, False),
        (1000.0, 1000.1, False),
        (None, 0.0, False),
        (1000.0, None, False),
    ],
)
def test_an_energy_counter_that_fell_is_an_initialisation(before: float | None, now: float | None, anew: bool) -> None:
    assert initialised_anew(replace(KNOWN, energy=before), gpu(0, energy=now)) is anew
    assert unit(gpu(0, ecc_uncorrected=9, energy=now), replace(KNOWN, energy=before, ecc=EccWatch(9, 9, 0.0))).ecc == (
        EccWatch(0, 9, 0.0, tripped=True) if anew else EccWatch(9, 9, 0.0)
    )


@pytest.mark.parametrize(
    ("at", "now", "energy"),
    [
        (500.0, 500.0, 500.0),
        (500.0, 600.0, 600.0),
        (500.0, None, 500.0),
        (None, 600.0, 600.0),
        (500.0, 499.0, None),
    ],
)
def test_a_latch_has_the_last_energy_that_was_read_and_ends_when_it_falls(
    at: float | None, now: float | None, energy: float | None
) -> None:
    latch = Latch(79, 10.0, BOOT, at, "MIG GI 1", 2)
    after = unit(gpu(0, energy=now), replace(KNOWN, energy=at, latches=(latch,)))
    assert after.latches == (() if energy is None else (replace(latch, energy=energy),))


def test_a_latch_has_where_and_when_its_xid_came() -> None:
    events = (xid(0, 79, monotonic=7.0), xid(0, 48, monotonic=8.0), xid(0, 79, monotonic=9.0, gpu_instance=3))
    assert unit(gpu(0, energy=1200.0), xids=events).latches == (
        Latch(48, 8.0, BOOT, 1200.0, "", 1),
        Latch(79, 9.0, BOOT, 1200.0, "MIG GI 3", 2),
    )


@pytest.mark.parametrize(
    "event",
    [
        xid(0, 13),
        xid(0, 79, kind="sxid"),
        xid(9, 79, uuid=""),
        xid(0, 79, uuid="", bus_id=""),
    ],
)
def test_what_is_mild_another_kind_or_nobodys_latches_nothing(event: XidEvent) -> None:
    scene = seen(node(gpu(0), gpu(1), xids=(event, xid(1, 46))))
    assert [[latch.xid for latch in one.latches] for one in scene.units.values()] == [[], [46]]


def test_a_site_says_what_latches() -> None:
    scene = seen(
        node(gpu(0), xids=(xid(0, 13), xid(0, 79))), settings=Health(xid_actions={13: "reset_gpu", 79: "none"})
    )
    assert [latch.xid for latch in scene.units[uuid(0)].latches] == [13]


def test_an_xid_makes_its_gpu_known_and_may_be_put_to_it_by_bus_id() -> None:
    scene = seen(node(xids=(xid(5, 79), xid(1, 48, uuid="")), hung=True))
    assert scene.units[uuid(5)] == UnitMemory(uuid(5), bus_id=bus(5), latches=(Latch(79, 0.0, BOOT),))
    assert [latch.xid for latch in scene.units[uuid(1)].latches] == [48]


@pytest.mark.parametrize(
    ("energy", "late", "kept"),
    [(999.0, True, 0), (1000.0, True, 1), (1001.0, True, 1), (None, True, 1), (999.0, False, 1)],
)
@pytest.mark.parametrize("name", [uuid(0), ""])
def test_a_late_xid_of_before_an_initialisation_is_over(name: str, energy: float | None, late: bool, kept: int) -> None:
    events = (xid(0, 79, uuid=name, late=late),)
    assert len(unit(gpu(0, energy=energy), xids=events).latches) == kept


def test_a_late_xid_of_a_gpu_of_which_no_energy_was_known_counts() -> None:
    late = xid(0, 79, late=True)
    assert len(unit(gpu(0, energy=1.0), replace(KNOWN, energy=None), xids=(late,)).latches) == 1
    assert len(seen(node(gpu(0, energy=1.0), xids=(late,)), Memory()).units[uuid(0)].latches) == 1
    assert len(seen(node(xids=(xid(7, 79, late=True),)), Memory()).units[uuid(7)].latches) == 1


@pytest.mark.parametrize(
    ("facts", "stopped", "unread"),
    [
        (node(gpu(0), gpu(1)), "", ()),
        (node(gpu(0)), "", ()),
        (node(gpu(0), hung=True, hung_uuid=uuid(1)), uuid(1), (uuid(1),)),
        (node(gpu(0), hung=True, hung_index=1), uuid(1), (uuid(1),)),
        (node(gpu(1), hung=True, hung_index=1), "", (uuid(0),)),
        (node(gpu(0), crashed=0, hung_uuid=uuid(1)), uuid(1), (uuid(1),)),
        (node(gpu(0), gpu(1), crashed=11, hung_uuid=uuid(0)), uuid(0), (uuid(0),)),
        (node(gpu(0), hung=True), "", (uuid(1),)),
        (node(gpu(0), hung=True, hung_index=7), "", (uuid(1),)),
        (node(gpu(0), hung_uuid=uuid(1), hung_index=1), "", ()),
        (node(nvml_error=9), "", (uuid(0), uuid(1))),
    ],
)
def test_where_a_sweep_stopped_and_what_it_left(facts: NodeFacts, stopped: str, unread: tuple[str, ...]) -> None:
    scene = seen(facts)
    assert (scene.stopped, scene.unread) == (stopped, unread)
    assert stopped not in scene.read


@pytest.mark.parametrize(("index", "known_as"), [(4, 4), (0, 0), (None, -1)])
def test_a_gpu_that_hangs_at_first_sight_is_known_by_its_index(index: int | None, known_as: int) -> None:
    scene = seen(node(gpu(0), hung=True, hung_uuid=uuid(4), hung_index=index), Memory())
    assert scene.units[uuid(4)] == UnitMemory(uuid(4), index=known_as)


def test_who_is_absent_is_kept_until_a_complete_sweep_says_otherwise() -> None:
    gone = seen(node(gpu(0)))
    assert (gone.absent, gone.units[uuid(1)].absent, gone.units[uuid(0)].absent) == ({uuid(1)}, True, False)
    memory = Memory(BOOT, units=gone.units)
    cut = seen(node(gpu(0), hung=True), memory)
    assert (cut.absent, cut.units[uuid(1)].absent) == (frozenset(), True)
    back = seen(node(gpu(0), lost(1)), memory)
    assert (back.absent, back.units[uuid(1)].absent) == (frozenset(), False)


def test_a_nameless_gpu_is_known_by_its_bus_id_alone() -> None:
    scene = seen(node(GpuFacts("", index=4, bus_id=bus(1), error=15), GpuFacts("", error=15), gpu(0)))
    assert set(scene.read) == {uuid(0), uuid(1)}
    assert scene.units[uuid(1)].index == 4
    assert scene.nameless == (GpuFacts("", error=15),)


@pytest.mark.parametrize(
    ("event", "whose"),
    [
        (xid(7, 13), uuid(7)),
        (xid(1, 13, uuid=""), uuid(1)),
        (xid(7, 13, uuid=""), ""),
        (xid(1, 13, uuid="", bus_id=""), ""),
    ],
)
def test_whose_an_xid_is(event: XidEvent, whose: str) -> None:
    assert seen(node(gpu(0), gpu(1))).unit_of(event) == whose


def test_no_bus_id_is_nobodys() -> None:
    nowhere = Memory(BOOT, units={uuid(3): UnitMemory(uuid(3))})
    assert seen(node(hung=True), nowhere).unit_of(xid(3, 13, uuid="", bus_id="")) == ""


@pytest.mark.parametrize(
    ("gpu_instance", "compute_instance", "words"),
    [(None, None, ""), (None, 1, ""), (0, None, "MIG GI 0"), (2, 0, "MIG GI 2 CI 0"), (2, 1, "MIG GI 2 CI 1")],
)
def test_the_instance_that_an_xid_names(gpu_instance: int | None, compute_instance: int | None, words: str) -> None:
    assert instance(xid(0, 13, gpu_instance=gpu_instance, compute_instance=compute_instance)) == words


@pytest.mark.parametrize(
    ("expected", "facts", "known", "verdict"),
    [
        (0, node(pci=on_bus(2)), False, True),
        (0, node(pci=on_bus(2)), True, True),
        (0, node(gpu(0)), False, False),
        (1, node(pci=on_bus(0)), False, False),
        (-1, node(pci=on_bus(0)), False, True),
        (-1, node(pci=on_bus(0)), True, False),
        (-1, node(gpu(0), pci=on_bus(0)), False, False),
        (-1, node(pci=on_bus(1)), False, False),
        (-1, node(pci=None), False, True),
        (-1, node(pci=None, nvml_error=12), False, False),
        (-1, node(pci=None, hung=True), False, False),
        (-1, node(pci=None, crashed=0), False, False),
        (-1, node(pci=on_bus(0), nvml_error=12), False, True),
    ],
)
def test_a_node_without_gpus(expected: int, facts: NodeFacts, known: bool, verdict: bool) -> None:
    settings = Health(expected_gpus=expected)
    scene = seen(facts, MEMORY if known else Memory(), settings)
    assert scene.without_gpus(settings) is verdict
