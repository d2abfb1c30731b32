"""A healthy node's day: jobs come and go, users' programs fail, clocks waver, drivers and nodes start anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import log

from nodeagent.health.xid import TABLE, latches
from nodeagent.replay.recording import Recorded
from tests.corpus.world import World

DAY = 86400.0
_USERS_XIDS = (13, 31, 43, 45, 8, 32, 68, 69, 94)
_HARMLESS_XIDS = tuple(number for number, known in TABLE.items() if not latches(known))
_UNKNOWN_XIDS = (7, 159, 999)
SOFTWARE_THERMAL, HARDWARE_THERMAL, POWER_BRAKE, APPLICATION_CLOCKS = 0x20, 0x48, 0x88, 0x2

Event = Callable[[World, int], Iterator[Recorded]]


def healthy_day(world: World, seconds: float = DAY) -> Iterator[Recorded]:
    """Yield the sweeps of a day (or so many seconds) in which nothing is wrong with the node."""
    for slot in world.slots():
        _grow_old(world, slot)
    end = world.at + seconds
    while world.at < end:
        quiet = -log(1.0 - world.random.random()) * 86400.0 / _EVENTS_A_DAY
        yield from world.run(min(quiet, end - world.at))
        if world.at < end:
            event = world.random.choices(list(_EVENTS), list(_EVENTS.values()))[0]
            yield from event(world, world.random.choice(world.slots()))


def _grow_old(world: World, slot: int) -> None:
    """A GPU that has served for a while: counters that stand somewhere, some near their end."""
    gpu, random = world.source.gpus[slot], world.random
    near_its_end = (1 << 32) - random.randrange(1, 50)
    for name in ("pcie_replays", "nvlink_errors", "ecc_corrected"):
        if getattr(gpu, name) is not None:
            world.source.set(slot, **{name: random.choice((0, random.randrange(1000), near_its_end))})
    if random.random() < 0.1:
        world.source.set(slot, ecc_uncorrected=random.randrange(1, 5))  # of before: nobody knows when they were
    if gpu.remapped_correctable is not None and random.random() < 0.2:
        world.source.set(slot, remapped_correctable=random.randrange(1, 4))
    if gpu.retired_pages is not None and random.random() < 0.2:
        world.source.set(slot, retired_pages=random.randrange(1, 3))


def _job(world: World, slot: int) -> Iterator[Recorded]:
    """A job begins or ends on some GPUs."""
    busy = not world.busy[slot]
    for other in world.random.sample(list(world.slots()), world.random.randrange(1, len(world.slots()) + 1)):
        world.busy[other] = busy
    yield world.sweep()


def _user_xid(world: World, slot: int) -> Iterator[Recorded]:
    """A user's program fails, on one GPU or on all of its own, once or many times."""
    number = world.random.choice(_USERS_XIDS)
    for other in world.random.sample(list(world.slots()), world.random.choice((1, 1, 1, len(world.slots())))):
        for _ in range(world.random.choice((1, 1, 2, 40))):
            world.xid(other, number, source=world.random.choice(("nvml", "kernel")))
    yield world.sweep()


def _odd_xid(world: World, slot: int) -> Iterator[Recorded]:
    """An XID that asks for nothing, or that nobody knows; a switch's."""
    random = world.random
    if random.random() < 0.2:
        world.xid(slot, random.choice((12028, 20001)), kind="sxid", uuid="", bus_id="0000:c4:00.0", source="kernel")
    else:
        world.xid(slot, random.choice((*_HARMLESS_XIDS, *_UNKNOWN_XIDS)))
    yield world.sweep()


def _warm(world: World, slot: int) -> Iterator[Recorded]:
    """The machine room is warm for some minutes: software slows the clocks, hardware for a moment."""
    limit = world.source.gpus[slot].slowdown_temperature or 90.0
    for temperature, reasons, seconds in (
        (limit - 8.0, SOFTWARE_THERMAL, 90.0),
        (limit - 1.0, HARDWARE_THERMAL, world.interval),
        (limit - 6.0, SOFTWARE_THERMAL, 60.0),
    ):
        world.pin(slot, temperature=temperature, slowdown_reasons=reasons)
        yield from world.run(seconds)
    world.unpin(slot)


def _brake(world: World, slot: int) -> Iterator[Recorded]:
    """The power supply brakes for a moment."""
    world.pin(slot, slowdown_reasons=POWER_BRAKE)
    yield world.sweep()
    world.unpin(slot)


def _clocks(world: World, slot: int) -> Iterator[Recorded]:
    """A user sets application clocks and, later, back."""
    world.pin(slot, slowdown_reasons=APPLICATION_CLOCKS, sm_clock=1e9)
    yield from world.run(600.0 * world.random.random())
    world.unpin(slot)


def _counters(world: World, slot: int) -> Iterator[Recorded]:
    """Links repeat a little, memory corrects a bit; what is near its end wraps."""
    for name, most in (("pcie_replays", 40), ("nvlink_errors", 20), ("ecc_corrected", 8)):
        world.count(slot, name, world.random.randrange(most))
    yield world.sweep()


def _no_value(world: World, slot: int) -> Iterator[Recorded]:
    """Some calls have no answer for a while."""
    world.pin(slot, utilization=None, power=None, ecc_uncorrected=None)
    yield from world.run(30.0)
    world.unpin(slot, "utilization", "power", "ecc_uncorrected")
    world.source.set(slot, ecc_uncorrected=0)


def _slow_probe(world: World, slot: int) -> Iterator[Recorded]:
    """NVML is late once, at a GPU or as a whole, or the probe dies once."""
    kind = world.random.choice(("hangs", "hangs at a GPU", "crashes"))
    if kind == "crashes":
        world.source.crash(slot)
    else:
        world.source.hang(None if kind == "hangs" else slot)
    yield world.sweep()
    world.source.heal()
    yield world.sweep()


def _mig(world: World, slot: int) -> Iterator[Recorded]:
    """A GPU without a job is divided, divided anew, or made whole again."""
    if world.source.gpus[slot].mig_enabled is not None:
        world.busy[slot] = False
        world.make_mig(slot, world.random.choice((0, 1, 2, 3, 7)))
    yield world.sweep()


def _reload(world: World, slot: int) -> Iterator[Recorded]:
    """The administrator loads the driver anew, perhaps another version."""
    version = world.random.choice(("550.54.15", "570.86.10", "570.133.20"))
    world.busy = [False for _ in world.slots()]
    yield from world.reload(world.interval * world.random.choice((1, 2)))
    world.source.node.update(driver=version, kernel_driver=version, nvml_version=f"12.{version}")


def _reboot(world: World, slot: int) -> Iterator[Recorded]:
    """The node boots, with a driver that is there at once or some seconds later."""
    yield from world.reboot(90.0 + 300.0 * world.random.random(), world.interval * world.random.choice((0, 1, 2)))


def _away(world: World, slot: int) -> Iterator[Recorded]:
    """Nobody looks for some minutes: the agent is stopped, or the machine is."""
    world.at += 60.0 + 900.0 * world.random.random()
    yield world.sweep()


_EVENTS: dict[Event, float] = {
    _job: 40, _user_xid: 25, _odd_xid: 10, _warm: 6, _brake: 2, _clocks: 6, _counters: 25, _no_value: 3,
    _slow_probe: 2, _mig: 6, _reload: 1, _reboot: 1, _away: 1,
}  # fmt: skip
"""What happens, and about how often in a day."""
_EVENTS_A_DAY = sum(_EVENTS.values())
