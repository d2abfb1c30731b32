"""The faults: each planted on a node, with the check that ought to find it. A new check adds its own here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from nodeagent.config.thresholds import Infiniband
from nodeagent.gpu.facts import ENDED, HUNG, Process, SiteResult
from nodeagent.gpu.host import Port, Service, Space
from nodeagent.health.checks import (
    driver_init,
    driver_unresponsive,
    ecc_uncorrected,
    gpu_count,
    gpu_lost,
    infiniband,
    kernel_module,
    probe_crashed,
    reset_required,
    rogue_process,
    services,
    site,
    state_space,
    sxid,
    xid,
)
from nodeagent.health.xid import TABLE, latches
from tests.corpus.catalogue import CATALOGUE
from tests.corpus.fault import SLOT, Fault, Touch
from tests.corpus.world import World


def _initialise(world: World, slot: int) -> None:
    world.source.heal()
    world.initialise(slot)


def _counts_energy(world: World) -> bool:
    return world.source.gpus[0].energy is not None


def _whole_node(name: str, check: str, plant: Touch, **more: Any) -> Fault:
    return Fault(name, check, plant, **{"on_node": True, "leads_to": "drain", **more})


def _gpu_lost() -> Iterator[Fault]:
    name = gpu_lost.NAME
    yield Fault("lost", name, lambda world, slot: world.source.lose(slot))
    yield Fault("gone from the list", name, lambda world, slot: world.source.absent(slot))
    yield Fault(
        "cannot be read", name, lambda world, slot: world.source.fail(slot, 4, "Insufficient Permissions"),
        state="UNKNOWN", lasts=900.0,
    )  # fmt: skip


def _reset_required() -> Iterator[Fault]:
    name = reset_required.NAME
    yield Fault("reset required", name, lambda world, slot: world.source.require_reset(slot), _initialise)
    yield Fault("reset status", name, _pinning(recovery_action=0, reset_status=1))
    yield Fault("drain and reset status", name, _pinning(recovery_action=None, drain_and_reset_status=1))
    for value in reset_required.ACTIONS:
        yield Fault(f"recovery action {value}", name, _pinning(recovery_action=value))
    yield Fault(
        "recovery action 99", name, _pinning(recovery_action=99),
        state="UNKNOWN", lasts=900.0,
    )  # fmt: skip


def _pinning(**values: Any) -> Touch:
    return lambda world, slot: world.pin(slot, **values)


def _xids() -> Iterator[Fault]:
    for number, known in sorted(TABLE.items()):
        if latches(known):
            yield _xid(f"XID {number}", number)
    yield _xid("XID 79 by the kernel alone", 79, source="kernel", uuid="")
    yield _xid("XID 95 of a MIG instance", 95, gpu_instance=2, compute_instance=0)


def _xid(name: str, number: int, **fields: Any) -> Fault:
    returns = TABLE[number].action.word != "inspect_hardware"
    # A GPU without an energy counter shows nothing by which the engine could see that it was initialised.
    return Fault(
        name, xid.NAME, lambda world, slot: world.xid(slot, number, **fields), _initialise,
        returns=returns, fits=_counts_energy,
    )  # fmt: skip


def _ecc() -> Iterator[Fault]:
    for errors in (1, 1000):
        yield Fault(
            f"{errors} uncorrected ECC errors", ecc_uncorrected.NAME,
            lambda world, slot, errors=errors: world.count(slot, "ecc_uncorrected", errors), _initialise,
        )  # fmt: skip


def _driver() -> Iterator[Fault]:
    for code, text in ((9, "Driver Not Loaded"), (12, ""), (17, ""), (18, ""), (999, "Unknown Error")):
        yield _whole_node(
            f"NVML does not start ({code})", driver_init.NAME,
            lambda world, slot, code=code, text=text: world.source.fail_init(code, text),
        )  # fmt: skip
    hangs, crashes = driver_unresponsive.NAME, probe_crashed.NAME
    yield Fault("NVML hangs at a GPU", hangs, lambda world, slot: world.source.hang(slot))
    yield _whole_node("NVML hangs", hangs, lambda world, slot: world.source.hang(), state="UNKNOWN")
    yield Fault(
        "NVML crashes at a GPU", crashes, lambda world, slot: world.source.crash(slot), state="UNKNOWN", lasts=900.0
    )


def _around() -> Iterator[Fault]:
    """What is wrong around the GPUs: module, services, ports, room, processes, switches."""

    def of_node(**values: Any) -> Touch:
        return lambda world, slot: world.source.node.update(values)

    for driver in ("", "nouveau"):
        yield _whole_node(
            f"no kernel module ({driver or 'none'})", kernel_module.NAME,
            lambda world, slot, driver=driver: world.lose_module(driver), clear=lambda world, slot: world.load_module(),
        )  # fmt: skip
    down = Service(services.FABRIC_MANAGER, "loaded", "failed", "exit-code", "enabled")
    yield _whole_node(
        "the fabric manager is down", services.NAME, lambda world, slot: world.tell_services(down),
        clear=lambda world, slot: world.tell_services(), fits=lambda world: bool(world.source.gpus[0].fabric_state),
    )  # fmt: skip
    daemon = Service("nvidia-persistenced", "loaded", "failed", "signal", "enabled")
    yield _whole_node(
        "the persistence daemon is down", services.NAME, lambda world, slot: world.tell_services(daemon),
        clear=lambda world, slot: world.tell_services(), state="DEGRADED", leads_to="",
    )  # fmt: skip
    yield from _ports()
    for words, space, state in (("nearly full", Space(1 << 20), "DEGRADED"), ("full", Space(0), "FAILED")):
        yield _whole_node(
            f"the state directory is {words}", state_space.NAME, of_node(space=space),
            clear=of_node(space=Space(1 << 30)), state=state, leads_to="",
        )  # fmt: skip
    stranger = Process(7777, 1 << 20, 1234, "mallory", "miner")
    yield Fault(
        "a process without a grant", rogue_process.NAME,
        lambda world, slot: (world.source.node.update(locked=True), world.pin(slot, processes=(stranger,))),
        state="DEGRADED", leads_to="",
    )  # fmt: skip
    yield _whole_node(
        "a switch fails for good", sxid.NAME, lambda world, slot: world.sxid(22003, "22003, Fatal, Minion Halt"),
        clear=lambda world, slot: [world.initialise(other) for other in world.slots()], fits=_counts_energy,
    )  # fmt: skip
    yield _whole_node(
        "a switch's link fails", sxid.NAME, lambda world, slot: world.sxid(20034, "20034, Fatal, Link 30 LTSSM"),
        clear=lambda world, slot: None, state="DEGRADED", leads_to="", lasts=10.0,
    )  # fmt: skip


def _ports() -> Iterator[Fault]:
    name = infiniband.NAME
    up = tuple(Port(f"mlx5_{k}", 1, 4, 5, 200.0, 0) for k in range(2))

    def becomes(*ports: Port) -> Touch:
        return lambda world, slot: world.source.node.update(ports=ports)

    def ported(world: World) -> Mapping[str, Any]:
        world.source.node["ports"] = up
        return {"infiniband": Infiniband(ports=2)}

    def unwished(world: World) -> Mapping[str, Any]:
        world.source.node["ports"] = up
        return {}

    dark = replace(up[1], state=1, physical=3)
    yield _whole_node(
        "too few InfiniBand ports", name, becomes(up[0], dark), clear=becomes(*up), health=ported, lasts=900.0
    )
    mild = {"clear": becomes(*up), "health": unwished, "state": "DEGRADED", "leads_to": ""}
    yield _whole_node("an InfiniBand port is down", name, becomes(up[0], dark), lasts=900.0, **mild)
    yield _whole_node(
        "an InfiniBand port flaps", name, becomes(up[0], replace(up[1], downed=5)),
        **{**mild, "clear": becomes(up[0], replace(up[1], downed=0))},
    )  # fmt: skip


def _count() -> Iterator[Fault]:
    name = gpu_count.NAME
    yield _whole_node(
        "fewer GPUs than expected", name, lambda world, slot: None, clear=lambda world, slot: None,
        health=lambda world: {"expected_gpus": len(world.slots()) + 1}, returns=False, from_start=True,
    )  # fmt: skip
    yield _whole_node(
        "more GPUs than expected", name, lambda world, slot: None, clear=lambda world, slot: None,
        health=lambda world: {"expected_gpus": len(world.slots()) - 1}, returns=False, from_start=True,
        state="DEGRADED", leads_to="",
    )  # fmt: skip
    yield _whole_node(
        "a GPU that the driver does not serve", name,
        lambda world, slot: world.source.node.update(pci=world.on_bus(also=("0000:f1:00.0",))),
        clear=lambda world, slot: world.source.node.pop("pci"), state="DEGRADED", leads_to="",
    )  # fmt: skip


def _site() -> Iterator[Fault]:
    name = site.check_name("fans")
    bad = {"status": 1, "output": f"GPU {SLOT}: fan stopped", "action": "reset_gpu"}
    yield Fault("a site's check finds a GPU", name, _saying(**bad, unit_from="text"), _saying(status=0))
    yield _whole_node("a site's check finds the node", name, _saying(**bad), clear=_saying(status=0))
    hung = _saying(kind=HUNG, timeout=30.0)
    yield _whole_node("a site's check hangs", name, hung, clear=_saying(status=0), state="DEGRADED", leads_to="")


def _saying(**values: Any) -> Touch:
    def touch(world: World, slot: int) -> None:
        result = SiteResult("fans", **{"kind": ENDED, "monotonic": world.monotonic, **values})
        world.source.node["site"] = (result,)

    return touch


FAULTS: tuple[Fault, ...] = (
    *_gpu_lost(),
    *_reset_required(),
    *_xids(),
    *_ecc(),
    *_driver(),
    *_count(),
    *_around(),
    *_site(),
    *CATALOGUE,
)
