"""What looks like a fault and is none: after each of these a node is as well as before, and nothing was taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nodeagent.health.xid import TABLE, latches
from nodeagent.replay.recording import Recorded
from tests.corpus.fault import SLOT
from tests.corpus.world import World


@dataclass(frozen=True)
class Neighbour:
    """One thing that must not change a verdict: `happen` yields the sweeps in which it does."""

    name: str
    happen: Callable[[World], Iterator[Recorded]]


def _during(world: World, sweeps: int, plant: Callable[[], object]) -> Iterator[Recorded]:
    plant()
    yield from world.run(sweeps * world.interval)
    world.source.heal()


def _xids() -> Iterator[Neighbour]:
    for number in (*(number for number, known in sorted(TABLE.items()) if not latches(known)), 999, 0):
        yield _xid(f"XID {number}", number)
    yield _xid("SXid of a switch", 79, kind="sxid", uuid="", bus_id="0000:c4:00.0")
    yield _xid("XID 94 of a MIG instance", 94, gpu_instance=1)
    yield Neighbour("a thousand XIDs 31", _burst)


def _xid(name: str, number: int, **fields: Any) -> Neighbour:
    return Neighbour(name, lambda world: _during(world, 3, lambda: world.xid(SLOT, number, **fields)))


def _burst(world: World) -> Iterator[Recorded]:
    for _ in range(1000):
        world.xid(SLOT, 31)
    yield world.sweep()


def _short_ones() -> Iterator[Neighbour]:
    """Faults of the prober and the driver that end before their strikes are full."""
    yield Neighbour("NVML hangs once", lambda world: _during(world, 1, world.source.hang))
    yield Neighbour("NVML hangs at a GPU once", lambda world: _during(world, 1, lambda: world.source.hang(SLOT)))
    yield Neighbour("the probe crashes once", lambda world: _during(world, 1, lambda: world.source.crash(SLOT)))
    yield Neighbour("NVML does not start twice", lambda world: _during(world, 2, lambda: world.source.fail_init(9)))
    yield Neighbour("a quick driver reload", lambda world: world.reload(2 * world.interval))


def _counters() -> Iterator[Neighbour]:
    def held(**values: Any) -> Callable[[World], Iterator[Recorded]]:
        return lambda world: _during(world, 5, lambda: world.pin(SLOT, **values))

    def errors_of_before(world: World) -> Iterator[Recorded]:
        """Uncorrected errors from before the agent's first look at this boot: nobody knows when they were."""
        yield from world.reboot(120.0)
        world.pin(SLOT, ecc_uncorrected=7)
        yield from world.run(50.0)

    yield Neighbour("uncorrected ECC errors of before", errors_of_before)
    yield Neighbour("no ECC figures", held(ecc_uncorrected=None, ecc_corrected=None, ecc_enabled=False))
    yield Neighbour("no recovery action", held(recovery_action=None))
    yield Neighbour("no load figures", held(utilization=None, power=None, temperature=None, energy=None))
    yield Neighbour("a few corrected ECC errors", lambda world: _during(world, 5, lambda: _correct(world)))
    yield Neighbour(
        "the driver initialises a GPU anew", lambda world: _during(world, 5, lambda: world.initialise(SLOT))
    )
    yield Neighbour("a counter wraps", _wrap)


def _correct(world: World) -> None:
    world.count(SLOT, "ecc_corrected", 3)


def _wrap(world: World) -> Iterator[Recorded]:
    """Counters stand near their end when the agent first sees them."""
    yield from world.reboot(120.0)
    for name in ("pcie_replays", "nvlink_errors", "ecc_corrected"):
        world.count(SLOT, name, (1 << 32) - 2)
    yield world.sweep()
    for name in ("pcie_replays", "nvlink_errors", "ecc_corrected"):
        world.count(SLOT, name, 3)
    yield from world.run(30.0)


def _changes() -> Iterator[Neighbour]:
    def mig(world: World) -> Iterator[Recorded]:
        for parts in (2, 7, 0):
            world.make_mig(SLOT, parts)
            yield from world.run(30.0)

    yield Neighbour("MIG is set up and taken down", mig)
    yield Neighbour("a reboot", lambda world: world.reboot(240.0))
    yield Neighbour("a reboot with a driver that takes its time", lambda world: world.reboot(240.0, 2 * world.interval))


NEIGHBOURS: tuple[Neighbour, ...] = (*_xids(), *_short_ones(), *_counters(), *_changes())
