"""The scenario: what the node's GPUs are like now, kept in memory and rewritten to its file at each change."""

import os
import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Union

from .build import build
from .models import MODELS, Model, Value, idle_values
from .topology import CPUS_PER_NUMA_NODE, Link, Place, links, places

_NAMESPACE = uuid.UUID("6c1f6f1e-6b0d-5d1b-9f53-5a2d1b1c7e55")
_EVENTS_KEPT = 256
_DEFAULT_BUILD = Path(__file__).resolve().parents[2] / "build" / "simnvml"

# Counters that run with time: (counter, nanoseconds of one unit at rate 1, what gives the rate). The library computes
# `base + rate x elapsed`; a change of a rate moves the base up first, so that the counter never jumps.
_COUNTERS = (
    ("energy_mj", 10**9, "power_mw"),
    ("pcie_replay", 10**9, "pcie_replay_rate"),
    ("pcie_tx_bytes", 977_000, "pcie_tx_kib"),
    ("pcie_rx_bytes", 977_000, "pcie_rx_kib"),
    ("nvlink_kib", 10**9, "nvlink_kib_rate"),
)
_SLOWED = (("violation_power_ns", 0x4 | 0x80), ("violation_thermal_ns", 0x20 | 0x40))

_VOLATILE = tuple(f"{kind}_{what}_volatile" for kind in ("ecc", "sram") for what in ("corrected", "uncorrected"))

# First GPU instance id for each profile size, as NVML numbers them.
_FIRST_INSTANCE = {7: 0, 4: 1, 3: 1, 2: 3, 1: 7}
_PROFILE = re.compile(r"(?:(?P<compute>[1-7])c\.)?(?P<slices>[12347])g\.(?P<gb>\d+)gb(?:\+me)?")


class UnknownModel(Exception):
    """No such GPU model."""


class UnknownGpu(Exception):
    """The scenario has no GPU of this number."""


class UnknownKey(Exception):
    """A GPU has no value of this name."""


class UnknownProfile(Exception):
    """Not a MIG profile, or the GPU's model has no MIG: (profile, model)."""


@dataclass(frozen=True)
class Process:
    """One process on a GPU. `memory` is in bytes (None: NVML does not know), `mig` an index from `Scenario.mig`."""

    pid: int
    memory: Optional[int] = 0
    kind: str = "compute"
    """`compute`, `graphics` or `mps`."""
    sm_util: Optional[int] = 0
    """Percent; None leaves the process out of the utilisation samples."""
    memory_util: int = 0
    mig: Optional[int] = None


@dataclass(frozen=True)
class MigInstance:
    """One MIG instance, as written to the scenario."""

    gi: int
    ci: int
    slices: int
    compute_slices: int
    multiprocessors: int
    memory_mib: int
    profile: str
    uuid: str


@dataclass
class _Gpu:
    model: Model
    values: dict[str, Value]
    links: list[Link]
    state: str = "present"
    mig: list[MigInstance] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    pages: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class _Fault:
    gpu: Optional[int]
    line: str


class Scenario:
    """What libnvidia-ml.so.1 shall say: `gpus` GPUs of one model (or a list of models), rewritten atomically.

    GPUs are named by their slot, 0 to 15, which stays the same when one falls off the bus; NVML's index does not.
    Every method that changes something writes the file, unless inside `edit()`, which writes once at its end.
    A process that has the library loaded sees the change at its next call. Methods may be called from any thread of
    one process; one scenario has one writing process.
    `library` is where to compile (default: build/simnvml of the source tree).
    """

    def __init__(
        self,
        path: Path,
        gpus: int = 8,
        model: Union[str, Sequence[str]] = "H100-80GB",
        driver: str = "550.54.15",
        topology: str = "nvswitch",
        node: str = "node1",
        library: Optional[Path] = None,
    ) -> None:
        self.path = path
        self.driver = driver
        self.node = node
        self.dstate_seconds = 600
        self.dstate_file: Optional[Path] = None
        """A file on a frozen file system: `dstate` then writes to it, and outlives even SIGKILL until the thaw."""
        self.control: Optional[Path] = None
        """The node's /dev/nvidiactl (set by `fake_roots`): open in each process between nvmlInit and nvmlShutdown."""
        self.cuda = 12040
        self._library = library or _DEFAULT_BUILD
        self._lock = threading.RLock()
        self._editing = 0
        self._stamp = 0
        self._absorbed = 0
        self._events: list[str] = []
        self._sequence = 0
        self._faults: list[_Fault] = []
        names = [model] * gpus if isinstance(model, str) else list(model)
        for name in names:
            if name not in MODELS:
                raise UnknownModel(name)
        where = places(topology, len(names))
        self._gpus = [self._new_gpu(slot, MODELS[names[slot]], place) for slot, place in enumerate(where)]
        for slot, gpu in enumerate(self._gpus):
            gpu.links = links(topology, gpu.model, where)[slot]
            gpu.values["nvlink_count"] = len(gpu.links) or None
            if topology == "nvswitch" and gpu.model.architecture >= 9:
                gpu.values["fabric_state"] = 3
        self._write()

    def _new_gpu(self, slot: int, model: Model, place: Place) -> _Gpu:
        values = idle_values(model, self.driver)
        values.update(
            uuid=f"GPU-{uuid.uuid5(_NAMESPACE, f'{self.node}/{slot}')}",
            serial=str(1_650_000_000_000 + uuid.uuid5(_NAMESPACE, f"{self.node}#{slot}").int % 10**9),
            minor=slot,
            bus_id=place.bus_id,
            numa_node=place.numa_node,
            pcie_switch=place.pcie_switch,
            host_bridge=place.host_bridge,
            cpu_first=place.numa_node * CPUS_PER_NUMA_NODE,
            cpu_count=CPUS_PER_NUMA_NODE,
            nvlink_version=model.nvlink_version,
            nvlink_speed=model.nvlink_speed,
            since_ns=time.monotonic_ns(),
        )
        return _Gpu(model, values, [])

    # ---- looking ---------------------------------------------------------------------------------------------

    @property
    def env(self) -> dict[str, str]:
        """What a process that is to see these GPUs needs in its environment; compiles the library if need be."""
        return {"SIMNVML_SCENARIO": str(self.path), "LD_LIBRARY_PATH": str(build(self._library))}

    @property
    def slots(self) -> range:
        """All GPUs, also those that are absent."""
        return range(len(self._gpus))

    def uuid(self, gpu: int) -> str:
        """The GPU's UUID, `GPU-…`."""
        return str(self.get(gpu, "uuid"))

    def bus_id(self, gpu: int) -> str:
        """The bus id as NVML writes it, `00000000:1B:00.0`."""
        return str(self.get(gpu, "bus_id"))

    def state(self, gpu: int) -> str:
        """`present`, `lost`, `reset_required` or `absent`."""
        return self._gpu(gpu).state

    def mig_instances(self, gpu: int) -> list[MigInstance]:
        """The MIG instances there are, in the order of their indices."""
        return list(self._gpu(gpu).mig)

    def get(self, gpu: int, key: str) -> Value:
        """One value as it is now; what a process set through NVML (compute mode, power limit) is seen here too."""
        with self._lock:
            self._absorb()
            values = self._gpu(gpu).values
            if key not in values:
                raise UnknownKey(key)
            return values[key]

    def _gpu(self, gpu: int) -> _Gpu:
        if not 0 <= gpu < len(self._gpus):
            raise UnknownGpu(gpu)
        return self._gpus[gpu]

    # ---- changing --------------------------------------------------------------------------------------------

    @contextmanager
    def edit(self) -> Iterator["Scenario"]:
        """Gather several changes into one write, so that no call sees half of them. Nests."""
        with self._lock:
            if self._editing == 0:
                self._absorb()
            self._editing += 1
            try:
                yield self
            finally:
                self._editing -= 1
                if self._editing == 0:
                    self._absorb()
                    self._write()

    def set(self, gpu: int, **values: Value) -> None:
        """Give values by the names of README.md's table, in its units; None makes NVML answer NOT_SUPPORTED."""
        with self.edit():
            known = self._gpu(gpu).values
            for key in values:
                if key not in known:
                    raise UnknownKey(key)
            self._settle(gpu)
            known.update(values)

    def lose(self, gpu: int) -> None:
        """Let the GPU fall off the bus while still enumerated: every getter and lookup answers 15."""
        self._set_state(gpu, "lost")

    def require_reset(self, gpu: int) -> None:
        """Every getter and lookup of the GPU answers 16."""
        self._set_state(gpu, "reset_required")

    def absent(self, gpu: int) -> None:
        """Take the GPU out of the enumeration: the count falls, later indices shift, UUIDs stay."""
        self._set_state(gpu, "absent")

    def _set_state(self, gpu: int, state: str) -> None:
        with self.edit():
            self._gpu(gpu).state = state

    def heal(self, gpu: Optional[int] = None) -> None:
        """Make the GPU well: no state, no faults, no error that asks for an action. Without a GPU: all of the node.

        Aggregate counters and the rows remapped stay, as they would.
        """
        with self.edit():
            if gpu is None:
                self._faults.clear()
            for slot in self.slots if gpu is None else [gpu]:
                target = self._gpu(slot)
                self._settle(slot)
                target.state = "present"
                self.clear_faults(slot)
                fresh = idle_values(target.model, self.driver)
                for key in (
                    *("recovery_action", "reset_status", "drain_and_reset_status", "clock_reasons", "temperature"),
                    *("memory_temperature", "remapped_pending", "remapped_failure", "retired_pending"),
                    *("sram_threshold", "remap_exhausted"),
                    *("pcie_generation", "pcie_width", "pcie_replay_rate"),
                    *_VOLATILE,
                ):
                    target.values[key] = fresh[key]
                for link in target.links:
                    link.up = True

    def reinitialise(self, gpu: Optional[int] = None) -> None:
        """Restart the counters, as a driver reload does, or a reset of the one GPU."""
        with self.edit():
            for slot in self.slots if gpu is None else [gpu]:
                values = self._gpu(slot).values
                running = [counter for counter, _, _ in _COUNTERS] + [counter for counter, _ in _SLOWED]
                for key in (*running, *_VOLATILE):
                    if values[key] is not None:
                        values[key] = 0
                values["since_ns"] = time.monotonic_ns()
                for link in self._gpu(slot).links:
                    link.errors = (0, 0, 0, 0, 0)

    def ecc(self, gpu: int, corrected: int = 0, uncorrected: int = 0, sram: bool = False) -> None:
        """Add memory errors to the volatile and the aggregate counters; `sram`: not in device memory."""
        with self.edit():
            values = self._gpu(gpu).values
            for prefix in ("ecc", "sram") if sram else ("ecc",):
                for what, count in (("corrected", corrected), ("uncorrected", uncorrected)):
                    for span in ("volatile", "aggregate"):
                        key = f"{prefix}_{what}_{span}"
                        values[key] = _number(values[key]) + count

    def retire_page(self, gpu: int, address: int, double_bit: bool = True, pending: bool = True) -> None:
        """Retire one page (models before row remapping)."""
        with self.edit():
            target = self._gpu(gpu)
            target.pages.append((1 if double_bit else 0, address, time.time_ns() // 1000))
            target.values["retired_pending"] = 1 if pending else 0

    def unretire_pages(self, gpu: int) -> None:
        """Forget the retired pages, as another board in the slot would."""
        with self.edit():
            self._gpu(gpu).pages.clear()

    def link(self, gpu: int, index: int, up: bool = True, errors: Optional[Sequence[int]] = None) -> None:
        """Set one NVLink; `errors`: replay, recovery, CRC flit, CRC data, ECC data."""
        with self.edit():
            link = self._gpu(gpu).links[index]
            link.up = up
            if errors is not None:
                replay, recovery, crc_flit, crc_data, ecc_data = errors
                link.errors = (replay, recovery, crc_flit, crc_data, ecc_data)

    def processes(self, gpu: int, found: Sequence[Process], memory_used: Optional[int] = None) -> None:
        """Replace the GPU's processes; the memory in use becomes their sum unless given (bytes)."""
        with self.edit():
            target = self._gpu(gpu)
            target.processes = list(found)
            held = sum(process.memory or 0 for process in found)
            target.values["memory_used"] = held if memory_used is None else memory_used

    def mig(self, gpu: int, profiles: Optional[Sequence[str]]) -> list[str]:
        """Switch MIG on with these profiles (`1g.10gb`, `1c.3g.40gb`), or off with None; returns the UUIDs.

        Processes of earlier instances are gone with them. The node's limits on combinations are not checked.
        """
        with self.edit():
            target = self._gpu(gpu)
            if not target.model.mig_slice_multiprocessors:
                raise UnknownProfile(profiles, target.model.name)
            target.mig = [self._instance(gpu, index, profile) for index, profile in enumerate(profiles or ())]
            target.processes = [process for process in target.processes if process.mig is None]
            target.values.update(mig_mode=int(profiles is not None), mig_pending=int(profiles is not None))
            return [instance.uuid for instance in target.mig]

    def _instance(self, gpu: int, index: int, profile: str) -> MigInstance:
        model = self._gpu(gpu).model
        parts = _PROFILE.fullmatch(profile)
        if parts is None:
            raise UnknownProfile(profile, model.name)
        slices = int(parts["slices"])
        compute_slices = int(parts["compute"] or slices)
        return MigInstance(
            gi=_FIRST_INSTANCE[slices] + index,
            ci=0,
            slices=slices,
            compute_slices=compute_slices,
            multiprocessors=compute_slices * model.mig_slice_multiprocessors,
            memory_mib=model.memory * int(parts["gb"]) // model.memory_gb - 128,
            profile=profile,
            uuid=f"MIG-{uuid.uuid5(_NAMESPACE, f'{self.node}/{gpu}/{index}/{profile}')}",
        )

    # ---- events ----------------------------------------------------------------------------------------------

    def xid(self, gpu: int, number: int, gi: Optional[int] = None, ci: Optional[int] = None) -> int:
        """Report an XID to all event sets that asked; returns the event's sequence number."""
        return self._event(gpu, "xid", number, gi, ci)

    def recover(self, gpu: int, action: int) -> int:
        """Set the recovery action (field 230) and report that it changed (event type 0x8000)."""
        with self.edit():
            self.set(gpu, recovery_action=action)
            return self._event(gpu, "recovery", action, None, None)

    def _event(self, gpu: int, kind: str, value: int, gi: Optional[int], ci: Optional[int]) -> int:
        with self.edit():
            self._gpu(gpu)
            self._sequence += 1
            instance = "" if gi is None else f" {gi} {_word(ci)}"
            self._events.append(f"event {self._sequence} gpu {gpu} {kind} {value}{instance}")
            del self._events[:-_EVENTS_KEPT]
            return self._sequence

    # ---- faults ----------------------------------------------------------------------------------------------

    def fault(self, call: str, code: int, gpu: Optional[int] = None) -> None:
        """Make the call answer `code`. `call` is a name as the library exports it; `nvmlInit*` is a prefix."""
        self._misdeed(gpu, f"fault {call} {code}")

    def fail_init(self, code: int) -> None:
        """Make every way to initialise answer `code`: 9 no driver, 18 another driver than library."""
        self.fault("nvmlInit*", code)

    def hang(self, gpu: Optional[int] = None, call: Optional[str] = None) -> None:
        """Make the call (default: every one) of the GPU (default: of all) never return; the process is in state S."""
        self._misdeed(gpu, f"hang {call or '*'}")

    def dstate(self, gpu: Optional[int] = None, call: Optional[str] = None, seconds: Optional[int] = None) -> None:
        """Make the calling thread uninterruptible (state D) for `seconds` (default 600), then answer 999."""
        with self.edit():
            self.dstate_seconds = self.dstate_seconds if seconds is None else seconds
            self._misdeed(gpu, f"dstate {call or '*'}")

    def crash(self, gpu: Optional[int] = None, call: Optional[str] = None) -> None:
        """Make the call end its process by signal 11."""
        self._misdeed(gpu, f"crash {call or '*'}")

    def delay(self, milliseconds: float, gpu: Optional[int] = None, call: Optional[str] = None) -> None:
        """Make the call late, to the microsecond; it answers as it would have."""
        self._misdeed(gpu, f"latency {call or '*'} {milliseconds:.3f}")

    def clear_faults(self, gpu: Optional[int] = None) -> None:
        """Drop the faults given for this GPU; without a GPU, those given for no GPU in particular."""
        with self.edit():
            self._faults = [fault for fault in self._faults if fault.gpu != gpu]

    def _misdeed(self, gpu: Optional[int], line: str) -> None:
        with self.edit():
            if gpu is not None:
                self._gpu(gpu)
            self._faults.append(_Fault(gpu, line))

    # ---- the file --------------------------------------------------------------------------------------------

    def _settle(self, gpu: int) -> None:
        """Move the running counters' bases to now, by the library's own arithmetic."""
        values = self._gpu(gpu).values
        now = time.monotonic_ns()
        elapsed_us = max(0, now - _number(values["since_ns"])) // 1000
        for counter, unit_ns, rate in _COUNTERS:
            if values[counter] is not None and values[rate] is not None:
                gained = _number(values[rate]) * elapsed_us // (unit_ns // 1000)
                values[counter] = _number(values[counter]) + gained
        for counter, reasons in _SLOWED:
            if values[counter] is not None and _number(values["clock_reasons"] or 0) & reasons:
                values[counter] = _number(values[counter]) + elapsed_us * 1000
        values["since_ns"] = now

    def _absorb(self) -> None:
        """Take over what NVML's setters appended to the file since it was last written."""
        if not self.path.exists():
            return
        appended = self.path.read_text(encoding="ascii").partition("# end\n")[2].splitlines()
        for line in appended[self._absorbed :]:
            name, _, value = line.partition(" ")
            _, slot, key = name.split(".")
            if key not in self._gpu(int(slot)).values:
                raise UnknownKey(key)
            self._gpu(int(slot)).values[key] = int(value)
        self._absorbed = len(appended)

    def _write(self) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text("\n".join([*self._lines(), "# end", ""]), encoding="ascii")
        self._stamp = max(self._stamp + 1, time.time_ns())  # the file system's own stamps are too coarse to tell
        os.utime(temporary, ns=(self._stamp, self._stamp))
        os.replace(temporary, self.path)
        self._absorbed = 0

    def _lines(self) -> Iterator[str]:
        yield "format 1"
        yield f"driver {self.driver}"
        yield f"nvml 12.{self.driver}"
        yield f"cuda {self.cuda}"
        yield f"dstate_seconds {self.dstate_seconds}"
        if self.dstate_file is not None:
            yield f"dstate_file {self.dstate_file}"
        if self.control is not None:
            yield f"control {self.control}"
        yield f"gpus {len(self._gpus)}"
        for fault in self._faults:
            yield fault.line if fault.gpu is None else f"gpu.{fault.gpu}.{fault.line}"
        for slot, gpu in enumerate(self._gpus):
            for line in _gpu_lines(gpu):
                yield f"gpu.{slot}.{line}"
        yield from self._events


def _gpu_lines(gpu: _Gpu) -> Iterator[str]:
    yield f"state {gpu.state}"
    for key, value in gpu.values.items():
        yield f"{key} {_word(value)}"
    for index, link in enumerate(gpu.links):
        errors = " ".join(str(count) for count in link.errors)
        yield f"link {index} {'up' if link.up else 'down'} {link.kind} {link.remote} {errors}"
    for index, mig in enumerate(gpu.mig):
        shape = f"{mig.slices} {mig.compute_slices} {mig.multiprocessors} {mig.memory_mib}"
        yield f"mig {index} {mig.gi} {mig.ci} {shape} {mig.profile} {mig.uuid}"
    for process in gpu.processes:
        mine = None if process.mig is None else gpu.mig[process.mig]
        instance = "none none" if mine is None else f"{mine.gi} {mine.ci}"
        load = f"{_word(process.sm_util)} {process.memory_util}"
        yield f"process {process.kind} {process.pid} {_word(process.memory)} {instance} {load}"
    for cause, address, stamp in gpu.pages:
        yield f"retired_page {cause} {address} {stamp}"


def _word(value: Value) -> str:
    return "none" if value is None else str(value)


def _number(value: Value) -> int:
    if not isinstance(value, int):
        raise UnknownKey(value)
    return value
