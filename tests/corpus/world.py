"""A node under load, sweep by sweep, as an agent would have recorded it: the same seed gives the same node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any

from nodeagent.gpu.facts import GpuFacts, MigInstance, Process
from nodeagent.gpu.host import DeviceFile, Service
from nodeagent.health.xid import look_up
from nodeagent.replay.recording import Recorded, Truth
from tests.simnvml.models import MIB, MODELS
from tests.unit.fake_gpu import FakeGpuSource

GPUS = {"V100-32GB": 4, "L40S": 4, "T4": 4}  # of the rest there are eight in a node
FABRIC = ("H100-80GB", "B200")  # on NVSwitches that a fabric manager runs
IDLE_REASON, SOFTWARE_POWER_CAP = 0x1, 0x4
_WARMTH = 0.2  # the share of the way to its end temperature that a GPU goes in ten seconds
_INCREASING = ("pcie_replays", "nvlink_errors", "ecc_corrected")


def healthy_gpu(model: str, slot: int) -> GpuFacts:
    """Return a GPU of that model, idle and well."""
    made = MODELS[model]
    idle, _, limit = made.power
    shutdown, slowdown, _, memory_limit = made.temperatures
    fabric = model in FABRIC
    return GpuFacts(
        uuid=f"GPU-{slot:08x}-{abs(hash_of(model)):04x}-4000-8000-000000000000",
        index=slot, minor=slot, bus_id=f"0000:{0x1B + 0x10 * slot:02x}:00.0", name=made.name,
        serial=str(1_650_000_000_000 + slot), vbios="96.00.61.00.01", numa_node=slot // 4,
        utilization=0.0, memory_utilization=0.0, memory_used=0, memory_total=made.memory * MIB,
        temperature=34.0, memory_temperature=None if memory_limit is None else 38.0,
        power=float(idle), power_limit=float(limit), energy=5e6 if made.counts_energy else None,
        ecc_corrected_total=0,
ecc_uncorrected_total=0, device=DeviceFile("c", 0o666, 0, 0, 195, slot),
        sram_threshold_exceeded=False if made.remaps_rows else None, processes_known=True,
        remap_banks_exhausted=0 if made.remaps_rows else None, nvlink_recoveries=0 if made.nvlinks else None,
        sm_clock_max=made.clocks[0] * 1e6, performance_state=8,
        sm_clock=345e6, memory_clock=made.clocks[1] * 1e6, slowdown_reasons=IDLE_REASON,
        pcie_generation=made.pcie_generation, pcie_generation_max=made.pcie_generation,
        pcie_width=16, pcie_width_max=16,
        pcie_replays=0, ecc_enabled=True, ecc_uncorrected=0, ecc_corrected=0,
        recovery_action=0 if made.has_gsp else None, reset_status=0 if made.has_gsp else None,
        slowdown_temperature=float(slowdown),
        shutdown_temperature=float(shutdown),
        memory_max_temperature=None if memory_limit is None else float(memory_limit),
        remapped_correctable=0 if made.remaps_rows else None, remapped_uncorrectable=0 if made.remaps_rows else None,
        remapping_pending=False if made.remaps_rows else None, remapping_failed=False if made.remaps_rows else None,
        retired_pages=None if made.remaps_rows else 0, retirement_pending=None if made.remaps_rows else False,
        persistence=True, compute_mode=0,
        nvlink_total=made.nvlinks or None, nvlink_active=made.nvlinks or None,
        nvlink_errors=0 if made.nvlinks else None,
        fabric_state=3 if fabric else None, fabric_status=0 if fabric else None,
        mig_enabled=False if made.mig_slice_multiprocessors else None,
    )  # fmt: skip


def hash_of(model: str) -> int:
    """Return a small number for a model, the same in every run."""
    return sum(ord(letter) * (place + 1) for place, letter in enumerate(model)) & 0xFFFF


class World:
    """One node. `source` is the fake that other tests use: its words plant faults and take them back.

    `at` is the recording's time in seconds, `pinned` what a fault or a site holds a GPU's fields at, against the load.
    """

    def __init__(self, model: str, seed: int, interval: float = 10.0) -> None:
        self.model = model
        self.interval = interval
        self.random = Random(f"{model}/{seed}")  # noqa: S311  a simulation is to be the same again
        self.source = FakeGpuSource(0, clock=lambda: self.monotonic, boot_id="boot-1")
        self.source.gpus = [healthy_gpu(model, slot) for slot in range(GPUS.get(model, 8))]
        self.at = 0.0
        self.truths: list[Truth] = []
        self.pinned: dict[int, dict[str, Any]] = {}
        self.busy = [self.random.random() < 0.5 for _ in self.source.gpus]
        self._booted = -900.0 - self.random.random() * 1e6
        self._boots = 1
        self._driver = ""
        self._services: tuple[Service, ...] = ()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()

    @property
    def monotonic(self) -> float:
        """Seconds since this boot."""
        return self.at - self._booted

    def slots(self) -> range:
        """The GPUs' slots."""
        return range(len(self.source.gpus))

    def uuid(self, slot: int) -> str:
        """Return the UUID of the GPU in that slot."""
        return self.source.gpus[slot].uuid

    def on_bus(self, driver: str = "nvidia", also: tuple[str, ...] = ()) -> dict[str, str]:
        """Return the GPUs on the PCI bus, with the kernel driver that has them, and some that none has."""
        return {**{gpu.bus_id: driver for gpu in self.source.gpus}, **dict.fromkeys(also, "")}

    # ---- time ------------------------------------------------------------------------------------------------

    def sweep(self) -> Recorded:
        """Let one interval pass and return what is read then, with the XIDs that came."""
        self.at += self.interval
        for slot in self.slots():
            self._work(slot)
        self.source.node["services"] = tuple(replace(one, at=self.monotonic) for one in self._services)
        facts = self.source.sample()
        return Recorded(self.at, replace(facts, xids=self.source.take_xids(), duration=0.04))

    def run(self, seconds: float) -> Iterator[Recorded]:
        """Yield the sweeps of so many seconds, one at least."""
        end = self.at + seconds
        yield self.sweep()
        while self.at + self.interval <= end:
            yield self.sweep()

    def _work(self, slot: int) -> None:
        """One GPU's readings after an interval of work or rest."""
        gpu, made, noise = self.source.gpus[slot], MODELS[self.model], self.random.random()
        busy, pinned = self.busy[slot], self.pinned.get(slot, {})
        idle, _, limit = made.power
        power = limit * (0.9 + 0.1 * noise) if busy else idle * (1.0 + 0.1 * noise)
        goal = made.temperatures[1] - 22.0 + 4.0 * noise if busy else 32.0 + 4.0 * noise
        used = int((gpu.memory_total or 0) * 0.7) if busy else 0
        warmth = min(1.0, _WARMTH * self.interval / 10.0)
        temperature = round((gpu.temperature or goal) * (1 - warmth) + goal * warmth)
        values: dict[str, Any] = {
            "performance_state": 0 if busy else 8,
            "utilization": (0.9 + 0.1 * noise if busy else 0.0) if not gpu.mig_enabled else None,
            "memory_used": used,
            "processes": (Process(4000 + slot, used),) if busy else (),
            "temperature": float(temperature),
            "power": power,
            "sm_clock": made.clocks[0] * 1e6 * (0.85 + 0.15 * noise) if busy else 345e6,
            "slowdown_reasons": (SOFTWARE_POWER_CAP if noise > 0.7 else 0) if busy else IDLE_REASON,
            "pcie_generation": made.pcie_generation if busy else 1,  # links rest when nothing moves
        }
        if gpu.memory_temperature is not None:
            values["memory_temperature"] = float(temperature + 6)
        if gpu.energy is not None:
            values["energy"] = gpu.energy + power * self.interval
        self.source.set(slot, **{**values, **pinned})

    # ---- what happens to a node ------------------------------------------------------------------------------

    @contextmanager
    def truth(self, slot: int | None, check: str) -> Iterator[None]:
        """A fault of one GPU (None: of the node) that begins now and is there for as long as the block lasts."""
        begin = self.at
        yield
        self.truths.append(Truth("" if slot is None else self.uuid(slot), check, begin, self.at))

    def pin(self, slot: int, **values: Any) -> None:
        """Hold fields of a GPU at these values."""
        self.pinned.setdefault(slot, {}).update(values)
        self.source.set(slot, **values)

    def unpin(self, slot: int, *names: str) -> None:
        """Let the load have these fields again (all, if none is named)."""
        for name in names or tuple(self.pinned.get(slot, {})):
            self.pinned.get(slot, {}).pop(name, None)

    def mend(self, slot: int) -> None:
        """What a GPU's fields were held at is over: they are as on a healthy one."""
        well = healthy_gpu(self.model, slot)
        self.source.set(slot, **{name: getattr(well, name) for name in self.pinned.get(slot, {})})
        self.unpin(slot)

    def initialise(self, slot: int) -> None:
        """The driver initialises this GPU anew (a reset, a reload): what it counts since then begins again."""
        gpu = self.source.gpus[slot]
        self.unpin(slot)
        values: dict[str, Any] = {"ecc_uncorrected": 0, "ecc_corrected": 0, "temperature": 34.0}
        values.update({name: 0 for name in _INCREASING if getattr(gpu, name) is not None})
        if gpu.energy is not None:
            values["energy"] = 0.0
        self.source.set(slot, **values)

    def reload(self, seconds: float) -> Iterator[Recorded]:
        """The administrator loads the driver anew; for so long NVML answers 9."""
        self.source.fail_init(9, "Driver Not Loaded")
        yield from self.run(seconds)
        self.source.heal()
        for slot in self.slots():
            self.initialise(slot)

    def reboot(self, seconds: float, loading: float = 0.0) -> Iterator[Recorded]:
        """The node boots: nothing is read for `seconds`; then the driver is not there yet, for `loading` seconds."""
        self.at += seconds
        self._boots += 1
        self._booted = self.at - 30.0
        self.source.boot_id = f"boot-{self._boots}"
        self.source.heal()
        for slot in self.slots():
            self.initialise(slot)
            self.busy[slot] = False
        if loading:
            yield from self.reload(loading)

    def xid(self, slot: int, number: int, **fields: Any) -> None:
        """An XID comes; from the kernel it has a text."""
        if fields.get("source") == "kernel":
            text = f"NVRM: Xid (PCI:{self.source.gpus[slot].bus_id[:-2]}): {number}, pid=1234, name=train"
            fields.setdefault("text", f"{text}, {look_up(number, {}).name}")
        self.source.xid(slot, number, **fields)

    def sxid(self, number: int, text: str) -> None:
        """A switch reports a fault, in the kernel's words."""
        place = "0000:c4:00.0"
        words = f"nvidia-nvswitch0: SXid (PCI:{place}): {text}"
        self.source.xid(0, number, kind="sxid", uuid="", bus_id=place, source="kernel", text=words)

    def lose_module(self, driver: str) -> None:
        """The kernel module is gone, and another driver (empty: none) has the GPUs."""
        self.source.fail_init(9, "Driver Not Loaded")
        self._driver = self.source.node["kernel_driver"]
        self.source.node.update(kernel_driver="", pci=self.on_bus(driver))

    def load_module(self) -> None:
        """The kernel module is back."""
        self.source.heal()
        self.source.node.update(kernel_driver=self._driver, pci=self.on_bus())

    def tell_services(self, *services: Service) -> None:
        """Tell what systemd says of the services, in each sweep anew."""
        self._services = services

    def count(self, slot: int, name: str, more: int, modulus: int = 1 << 32) -> None:
        """One of a GPU's counters goes up, and starts again at the end of its range."""
        value = getattr(self.source.gpus[slot], name)
        if value is not None:
            self.source.set(slot, **{name: (value + more) % modulus})

    def make_mig(self, slot: int, parts: int) -> None:
        """Put a GPU in MIG mode with so many instances (0: take it out); the GPU is initialised for it."""
        self.initialise(slot)
        size = (self.source.gpus[slot].memory_total or 0) // max(1, parts)
        instances = tuple(
            MigInstance(
                f"MIG-{slot:08x}-{part:04x}-5000-8000-000000000000", part + 1, 0, size, 0, "", (3 + part, 4 + part)
            )
            for part in range(parts)
        )
        self.source.set(slot, mig_enabled=bool(parts), mig=instances)
