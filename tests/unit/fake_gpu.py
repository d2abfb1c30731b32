"""A GpuSource by hand: GPUs as plain values that a test changes, faults in the manner of the probe, XIDs on request."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from nodeagent.gpu.facts import GpuFacts, NodeFacts, Tended, XidEvent
from nodeagent.gpu.host import DeviceFile, DeviceRule

LOST, RESET_REQUIRED = 15, 16
NVSWITCH_18_LINKS = 108_000
GIB = 1 << 30
DRIVER = "550.54.15"


def idle_gpu(index: int) -> GpuFacts:
    """A healthy idle GPU, number `index` of its node."""
    return GpuFacts(
        uuid=f"GPU-{index:08x}-0000-4000-8000-000000000000",
        index=index,
        minor=index,
        bus_id=f"0000:{0x1B + 0x10 * index:02x}:00.0",
        name="NVIDIA H100 80GB HBM3",
        serial=str(1_650_000_000_000 + index),
        vbios="96.00.61.00.01",
        slot=str(index + 1),
        numa_node=index // 4,
        failed_calls=0,
        utilization=0.0,
        memory_utilization=0.0,
        memory_used=0,
        memory_total=80 * GIB,
        temperature=34.0,
        temperature_margin=55.0,
        memory_temperature=38.0,
        power=70.0,
        power_limit=700.0,
        energy=1000.0,
        sm_clock=345e6,
        sm_clock_max=1980e6,
        processes_known=True,
        device=DeviceFile("c", 0o666, 0, 0, 195, index),
        memory_clock=2619e6,
        slowdown_reasons=1,
        performance_state=0,
        pcie_generation=5,
        pcie_width=16,
        ecc_enabled=True,
        ecc_uncorrected=0,
        ecc_corrected=0,
        ecc_corrected_total=0,
        ecc_uncorrected_total=0,
        sram_threshold_exceeded=False,
        recovery_action=0,
        reset_status=0,
        drain_and_reset_status=0,
        slowdown_temperature=89.0,
        shutdown_temperature=92.0,
        memory_max_temperature=95.0,
        pcie_generation_max=5,
        pcie_width_max=16,
        pcie_replays=0,
        remapped_correctable=0,
        remapped_uncorrectable=0,
        remapping_pending=False,
        remapping_failed=False,
        remap_banks_exhausted=0,
        persistence=True,
        compute_mode=0,
        nvlink_total=18,
        nvlink_active=18,
        nvlink_errors=0,
        nvlink_recoveries=0,
        fabric_state=3,
        fabric_status=0,
        mig_enabled=False,
    )


class FakeGpuSource:
    """`count` GPUs that answer as the test says. GPUs are named by their slot, which no fault shifts.

    `gpus[slot]` may be replaced at will (or changed by `set`); `node` overrides fields of NodeFacts. The clock is a
    function that returns monotonic seconds; by default each sample is ten seconds after the one before.
    """

    def __init__(self, count: int = 8, clock: Callable[[], float] | None = None, boot_id: str = "boot-1") -> None:
        self.gpus: list[GpuFacts] = [idle_gpu(slot) for slot in range(count)]
        self.node: dict[str, Any] = {
            **{"driver": DRIVER, "kernel_driver": DRIVER, "nvml_version": f"12.{DRIVER}"},
            **{"control": DeviceFile("c", 0o666, 0, 0, 195, 255), "device_rule": DeviceRule(True, 0o666, 0, 0)},
        }
        self.boot_id = boot_id
        self.samples = 0
        self.looks = 0
        self.wishes: list[tuple[str, dict[str, str]]] = []
        self.refused: dict[str, str] = {}
        self.closed = False
        self.timeouts = self.crashes = self.abandoned = self.overruns = 0
        self._clock = clock
        self._gone: set[int] = set()
        self._errors: dict[int, tuple[int, str]] = {}
        self._init_error: tuple[int, str] | None = None
        self._hanging: set[int] = set()
        self._hangs_whole = False
        self._crashing: set[int] = set()
        self._suspects: list[int] = []
        self._xids: list[XidEvent] = []
        self._sequence = 0
        self.kernel_sequence: int | None = None
        self.resumed: tuple[str, int] | None = None
        self.has_kernel_log = True
        self.open = False
        """Whether NVML would be open now."""
        self.lent = False
        self.stuck = 0
        """Processes that nobody can end."""
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    # ---- what a test says ------------------------------------------------------------------------------------

    def set(self, slot: int, **values: Any) -> None:
        """Change fields of one GPU."""
        self.gpus[slot] = replace(self.gpus[slot], **values)

    def lose(self, slot: int) -> None:
        """The GPU has fallen off the bus and is still enumerated."""
        self._errors[slot] = (LOST, "GPU is lost")

    def require_reset(self, slot: int) -> None:
        """The GPU asks for a reset and answers nothing else."""
        self._errors[slot] = (RESET_REQUIRED, "GPU requires reset")

    def fail(self, slot: int, code: int, text: str) -> None:
        """The GPU answers nothing but that code."""
        self._errors[slot] = (code, text)

    def absent(self, slot: int) -> None:
        """The GPU is not enumerated any more."""
        self._gone.add(slot)

    def fail_init(self, code: int, text: str = "") -> None:
        """NVML as a whole does not answer."""
        self._init_error = (code, text)

    def hang(self, slot: int | None = None) -> None:
        """Never answer about one GPU, or (None) at all."""
        self._hangs_whole |= slot is None
        self._hanging |= set() if slot is None else {slot}

    def crash(self, slot: int) -> None:
        """Reading this GPU ends the probe by signal 11."""
        self._crashing.add(slot)

    def heal(self) -> None:
        """Take back all faults."""
        self._gone.clear()
        self._errors.clear()
        self._hanging.clear()
        self._crashing.clear()
        self._hangs_whole = False
        self._init_error = None

    def xid(self, slot: int, number: int, **fields: Any) -> None:
        """An XID comes now."""
        self._sequence += 1
        gpu = self.gpus[slot]
        event = XidEvent(gpu.uuid, number, self._now(), sequence=self._sequence, bus_id=gpu.bus_id)
        self._xids.append(replace(event, **fields))
        os.write(self._write, b"x")

    # ---- GpuSource -------------------------------------------------------------------------------------------

    def sample(self) -> NodeFacts:
        """See GpuSource."""
        self.samples += 1
        self.open = not self.lent
        pci = {gpu.bus_id: "nvidia" for slot, gpu in enumerate(self.gpus) if slot not in self._gone}
        facts = NodeFacts(boot_id=self.boot_id, monotonic=self._now(), pci=pci)
        if self._hangs_whole:
            self.timeouts += 1
            return replace(facts, hung=True, kernel_driver=self.node["kernel_driver"])
        facts = replace(facts, **self.node)
        if self._init_error is not None:
            code, text = self._init_error
            return replace(facts, nvml_error=code, nvml_error_text=text)
        present = [slot for slot in range(len(self.gpus)) if slot not in self._gone]
        read: list[GpuFacts] = []
        for slot in sorted(present, key=lambda slot: self._suspects.index(slot) if slot in self._suspects else -1):
            stopped = self._stopped(slot, present.index(slot))
            if stopped:
                return replace(facts, gpus=self._linked(read), **stopped)
            read.append(self._one(slot, present.index(slot)))
            self._suspects = [suspect for suspect in self._suspects if suspect != slot]
        return replace(facts, gpus=self._linked(read))

    def look(self, uuids: Collection[str]) -> tuple[GpuFacts, ...]:
        """See GpuSource."""
        self.looks += 1
        self.open = not self.lent
        present = [slot for slot in range(len(self.gpus)) if slot not in self._gone | self._hanging]
        if self._hangs_whole or self._init_error is not None:
            return ()
        return tuple(self._one(slot, at) for at, slot in enumerate(present) if self.gpus[slot].uuid in uuids)

    def tend(self, uuid: str, wish: Mapping[str, str]) -> Tended | None:
        """See GpuSource: a wish is granted unless the test has refused it."""
        self.wishes.append((uuid, dict(wish)))
        changed = {name: ("before", value) for name, value in wish.items() if name not in self.refused}
        return Tended(changed, {name: why for name, why in self.refused.items() if name in wish})

    def take_xids(self) -> tuple[XidEvent, ...]:
        """See GpuSource."""
        while self._xids and len(os.read(self._read, 4096)) == 4096:
            pass
        taken, self._xids = tuple(self._xids), []
        return taken

    def resume(self, boot_id: str, sequence: int) -> None:
        """See GpuSource: the test puts the XIDs there."""
        self.resumed = (boot_id, sequence)

    def fileno(self) -> int:
        """See GpuSource."""
        return self._read

    def close(self) -> None:
        """See GpuSource."""
        if not self.closed:
            os.close(self._read)
            os.close(self._write)
        self.closed = True

    def release(self) -> None:
        """Let NVML go till the next sample."""
        self.open = False

    def lend(self, between: bool) -> None:
        """See GpuSource."""
        self.open = self.open and not between
        self.lent = between

    def leave(self) -> int:
        """See GpuSource."""
        self.open = False
        return self.stuck

    def _now(self) -> float:
        return self._clock() if self._clock else 1000.0 + 10.0 * self.samples

    def _stopped(self, slot: int, index: int) -> dict[str, Any]:
        """How the sweep ends at this GPU, nothing if it does not."""
        if slot not in self._hanging | self._crashing:
            return {}
        self._suspects = [suspect for suspect in self._suspects if suspect != slot] + [slot]
        where = {"hung_uuid": self.gpus[slot].uuid, "hung_index": index}
        if slot in self._hanging:
            self.timeouts += 1
            return {"hung": True, **where}
        self.crashes += 1
        return {"crashed": 11, **where}

    def _one(self, slot: int, index: int) -> GpuFacts:
        gpu = replace(self.gpus[slot], index=index)
        if slot not in self._errors:
            return gpu
        code, text = self._errors[slot]
        return GpuFacts(
            uuid=gpu.uuid, index=index, minor=gpu.minor, bus_id=gpu.bus_id, name=gpu.name, serial=gpu.serial,
            vbios=gpu.vbios, slot=gpu.slot, numa_node=gpu.numa_node, error=code, error_text=text,
        )  # fmt: skip

    @staticmethod
    def _linked(gpus: list[GpuFacts]) -> tuple[GpuFacts, ...]:
        """The GPUs by index, all on NVSwitches except where the test has given links."""
        well = [gpu.bus_id for gpu in gpus if gpu.error is None]
        linked = []
        for gpu in sorted(gpus, key=lambda gpu: gpu.index or 0):
            links = gpu.links or {other: NVSWITCH_18_LINKS for other in well if other != gpu.bus_id}
            linked.append(gpu if gpu.error is not None else replace(gpu, links=links))
        return tuple(linked)
