"""What was read of the GPUs in one sweep: plain values, not judged. None means "no value", never 0."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Process:
    """A process that has a context on a GPU. `memory` in bytes."""

    pid: int
    memory: int | None = None


@dataclass(frozen=True)
class MigInstance:
    """A MIG compute instance: what a job is given when its GPU is in MIG mode."""

    uuid: str
    gpu_instance: int
    compute_instance: int
    memory_total: int | None = None


@dataclass(frozen=True)
class GpuFacts:
    """One GPU, as NVML gave it.

    Identity: `uuid`, `bus_id` (sysfs form, lower case, `0000:3b:00.0`). `index` is NVML's and shifts when a GPU falls
    off the bus. Units are base units: bytes, watts, joules, hertz, celsius; ratios 0..1. `error` is NVML's return code
    for the GPU as a whole (15 lost, 16 reset required), `error_text` its words. `links` maps the bus id of another GPU
    to the quality of the connection (see topology.py).
    """

    uuid: str
    index: int | None = None
    minor: int | None = None
    bus_id: str = ""
    name: str = ""
    serial: str = ""
    vbios: str = ""
    numa_node: int | None = None
    error: int | None = None
    error_text: str = ""
    utilization: float | None = None
    memory_utilization: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    temperature: float | None = None
    memory_temperature: float | None = None
    power: float | None = None
    power_limit: float | None = None
    energy: float | None = None
    sm_clock: float | None = None
    memory_clock: float | None = None
    slowdown_reasons: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    ecc_enabled: bool | None = None
    ecc_uncorrected: int | None = None
    ecc_corrected: int | None = None
    recovery_action: int | None = None
    mig_enabled: bool | None = None
    mig: tuple[MigInstance, ...] = ()
    processes: tuple[Process, ...] = ()
    links: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class XidEvent:
    """An XID as it came: on which GPU, which number, when (monotonic seconds), who saw it (`nvml` or `kernel`)."""

    uuid: str
    xid: int
    monotonic: float
    source: str = "nvml"
    sequence: int = 0


@dataclass(frozen=True)
class NodeFacts:
    """One sweep over the node.

    `nvml_error` is the return code that kept NVML as a whole from answering (9 no driver, 12 no library, 18 versions
    differ); then `gpus` is empty. `hung` says that no answer came in time: `hung_uuid` on which GPU (empty: before any
    GPU was reached), `crashed` by which signal the probe died. `gpus` then holds what had been read before.
    `monotonic` is when the sweep ended, `boot_id` in which boot.
    """

    boot_id: str
    monotonic: float
    driver: str = ""
    nvml_version: str = ""
    nvml_error: int | None = None
    nvml_error_text: str = ""
    hung: bool = False
    hung_uuid: str = ""
    crashed: int | None = None
    duration: float = 0.0
    pci_gpus: int | None = None
    gpus: tuple[GpuFacts, ...] = ()
    xids: tuple[XidEvent, ...] = ()


class GpuSource(Protocol):
    """Where facts come from: the probe process on a real node, a list in tests."""

    def sample(self) -> NodeFacts:
        """Read every GPU once, within a bounded time; never raises for what a GPU or the driver does."""

    def take_xids(self) -> tuple[XidEvent, ...]:
        """Return the XIDs that came since the last call, in order, each once, repeats included."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when XIDs wait; -1 for none."""

    def close(self) -> None:
        """End what was started."""
