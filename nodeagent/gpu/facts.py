"""What was read of the GPUs in one sweep: plain values, not judged. None means "no value", never 0."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from nodeagent.gpu.host import DeviceFile, DeviceRule, Holder, Port, Service, Space

F = TypeVar("F")


def altered(facts: F, **values: object) -> F:
    """Return the same facts with other values in these fields.

    What dataclasses.replace does, without its way through a constructor of some sixty fields, which costs 30 times as
    much and is gone several times for each GPU in each sweep. Nothing is checked when facts are built.
    """
    new = object.__new__(type(facts))
    vars(new).update(vars(facts), **values)
    return new


@dataclass(frozen=True)
class Process:
    """A process that has a context on a GPU. `memory` in bytes.

    Who it is says the kernel (job/attribution.py): `uid` and `user` it runs as, its `command`, and the `job` whose mark
    it bears, as locks write it (`slurm 17`). None and empty where that is not known.
    """

    pid: int
    memory: int | None = None
    uid: int | None = None
    user: str = ""
    command: str = ""
    job: str = ""


@dataclass(frozen=True)
class MigInstance:
    """A MIG compute instance: what a job is given when its GPU is in MIG mode.

    `caps` are the minors of its device files /dev/nvidia-caps/nvidia-capN, the GPU instance's first: whoever may open
    these (and its GPU's own file) may use it. Empty where the driver does not say.
    """

    uuid: str
    gpu_instance: int
    compute_instance: int
    memory_total: int | None = None
    memory_used: int | None = None
    profile: str = ""
    caps: tuple[int, ...] = ()


@dataclass(frozen=True)
class GpuFacts:
    """One GPU, as NVML gave it.

    Identity: `uuid`, `bus_id` (sysfs form, lower case, `0000:3b:00.0`). `index` is NVML's and shifts when a GPU falls
    off the bus. Units are base units: bytes, watts, joules, hertz, celsius; ratios 0..1. `error` is NVML's return code
    for the GPU as a whole (15 lost, 16 reset required), `error_text` its words; a GPU with an error is listed even
    where nothing else could be read, `uuid` empty if it was never known. `links` maps the bus id of another GPU to the
    quality of the connection (see topology.py).

    `slot` is the name of its slot on the chassis, where the firmware has one. ECC counts are the volatile ones (since
    the driver was loaded), those named `_total` are of the board's life. `reset_status` and `drain_and_reset_status`
    are not 0 while the driver wants a reset (field values 226, 227).
    `sram_threshold_exceeded` is NVIDIA's own limit for errors in caches. `power_limit` is the one enforced.
    Thresholds are NVML's (slowdown, shutdown, the memory's maximum); `temperature_margin` is what is left to the
    slowdown. `remapped_*` count rows, `remap_banks_exhausted` banks of memory without a spare row, `retired_pages`
    pages of both causes (GPUs before row remapping). NVLink: `nvlink_total` links there are, `nvlink_active` of
    them up, `nvlink_errors` the sum of replay, recovery and CRC errors, of which `nvlink_recoveries`.
    `fabric_state` is NVML's (3: completed), `fabric_status` its return code. `performance_state` 0 is P0, the
    fastest. `processes_known` says that NVML gave a list of processes, be it empty. `failed_calls` counts the calls
    of this sweep to which NVML gave a code that explains nothing (999 and its like): each of them is no value.
    `device` is /dev/nvidiaN. `holders` are those who hold it, or a part of it, by a lock.
    """

    uuid: str
    index: int | None = None
    minor: int | None = None
    bus_id: str = ""
    name: str = ""
    serial: str = ""
    vbios: str = ""
    slot: str = ""
    numa_node: int | None = None
    error: int | None = None
    error_text: str = ""
    failed_calls: int | None = None
    utilization: float | None = None
    memory_utilization: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    temperature: float | None = None
    temperature_margin: float | None = None
    memory_temperature: float | None = None
    power: float | None = None
    power_limit: float | None = None
    energy: float | None = None
    sm_clock: float | None = None
    sm_clock_max: float | None = None
    memory_clock: float | None = None
    slowdown_reasons: int | None = None
    performance_state: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    ecc_enabled: bool | None = None
    ecc_uncorrected: int | None = None
    ecc_uncorrected_total: int | None = None
    ecc_corrected: int | None = None
    ecc_corrected_total: int | None = None
    sram_threshold_exceeded: bool | None = None
    recovery_action: int | None = None
    reset_status: int | None = None
    drain_and_reset_status: int | None = None
    slowdown_temperature: float | None = None
    shutdown_temperature: float | None = None
    memory_max_temperature: float | None = None
    pcie_generation_max: int | None = None
    pcie_width_max: int | None = None
    pcie_replays: int | None = None
    remapped_correctable: int | None = None
    remapped_uncorrectable: int | None = None
    remapping_pending: bool | None = None
    remapping_failed: bool | None = None
    remap_banks_exhausted: int | None = None
    retired_pages: int | None = None
    retirement_pending: bool | None = None
    persistence: bool | None = None
    compute_mode: int | None = None
    nvlink_total: int | None = None
    nvlink_active: int | None = None
    nvlink_errors: int | None = None
    nvlink_recoveries: int | None = None
    fabric_state: int | None = None
    fabric_status: int | None = None
    device: DeviceFile | None = None
    holders: tuple[Holder, ...] = ()
    mig_enabled: bool | None = None
    mig: tuple[MigInstance, ...] = ()
    processes: tuple[Process, ...] = ()
    processes_known: bool | None = None
    links: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class XidEvent:
    """An XID as it came: on which GPU, which number, when (monotonic seconds), who saw it (`nvml` or `kernel`).

    `kind` is `xid`, or `sxid` for a fault of an NVSwitch: its numbers are another table's, and `bus_id` is the
    switch's. `uuid` is empty where the bus id belongs to no GPU that was ever read. `sequence` counts up within one
    source of events. The instances are set where the XID names a MIG instance; `text` is the kernel's own, if it was
    the witness. `late` ones were logged by the kernel while no agent listened.
    """

    uuid: str
    xid: int
    monotonic: float
    source: str = "nvml"
    sequence: int = 0
    kind: str = "xid"
    bus_id: str = ""
    gpu_instance: int | None = None
    compute_instance: int | None = None
    text: str = ""
    late: bool = False


NOT_YET, ENDED, HUNG, BROKEN = "not yet", "ended", "hung", "broken"


@dataclass(frozen=True)
class SiteResult:
    """What one of the site's own checks said last, with the settings by which it is to be understood.

    `kind`: it has NOT_YET run since the agent started, ENDED by itself with `status` (minus the signal), HUNG beyond
    its `timeout`, or is BROKEN: not started, `why` says it. `monotonic` is when its end was seen. `severity`, `action`
    and `unit_from` are those of config.site_checks.SiteCheck.
    """

    name: str
    kind: str = NOT_YET
    monotonic: float = 0.0
    status: int | None = None
    output: str = ""
    why: str = ""
    severity: str = "error"
    action: str = "none"
    unit_from: str = "node"
    timeout: float = 0.0


@dataclass(frozen=True)
class NodeFacts:
    """One sweep over the node.

    `nvml_error` is the return code that kept NVML as a whole from answering (9 no driver, 12 no library, 18 versions
    differ); then `gpus` is empty. `hung` says that no answer came in time: `hung_uuid` on which GPU (empty: before any
    GPU was reached, or one whose UUID was never read: then `hung_index` tells), `crashed` by which signal the probe
    died (0: it ended by itself); `hung_uuid` and `hung_index` tell where. `gpus` then holds what had been read before.
    `driver` is what NVML says, `kernel_driver` the version of the kernel module that is loaded (empty: none).
    `monotonic` is when the sweep ended, `boot_id` in which boot. `pci` are NVIDIA's display and 3D controllers on the
    bus, whatever the driver thinks of them: bus id → the kernel driver that has it (empty: none), None if the bus was
    not read. `site` is what the site's own checks said last.
    `kernel_sequence` is the number of the kernel's last log record that `xids` takes account of, None if not known.
    `ports` are the node's InfiniBand ports, which are `ports_silent` when they cannot be read in time; `services` are
    systemd's units of NVIDIA's, `space` what is left in the state directory. `control` is /dev/nvidiactl,
    `device_rule` how the driver keeps its device files (None also where somebody else keeps them). `locked` says that a
    lock has been seen on this node since the agent began, so that a process without one stands out.
    """

    boot_id: str
    monotonic: float
    driver: str = ""
    kernel_driver: str = ""
    nvml_version: str = ""
    nvml_error: int | None = None
    nvml_error_text: str = ""
    hung: bool = False
    hung_uuid: str = ""
    hung_index: int | None = None
    crashed: int | None = None
    duration: float = 0.0
    pci: dict[str, str] | None = None
    gpus: tuple[GpuFacts, ...] = ()
    xids: tuple[XidEvent, ...] = ()
    site: tuple[SiteResult, ...] = ()
    kernel_sequence: int | None = None
    ports: tuple[Port, ...] = ()
    ports_silent: bool = False
    services: tuple[Service, ...] = ()
    space: Space | None = None
    control: DeviceFile | None = None
    device_rule: DeviceRule | None = None
    locked: bool = False


@dataclass(frozen=True)
class Tended:
    """What became of a wish for a GPU's modes: `changed` setting → (before, after), `refused` setting → why."""

    changed: Mapping[str, tuple[object, object]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


class GpuSource(Protocol):
    """Where facts come from: the probe process on a real node, a list in tests."""

    @property
    def kernel_sequence(self) -> int | None:
        """The number of the kernel's last log record of which the XIDs taken so far take account."""

    def resume(self, boot_id: str, sequence: int) -> None:
        """Take up the XIDs that the kernel has logged after that record of that boot, if it is this one."""

    def look(self, uuids: Collection[str]) -> tuple[GpuFacts, ...]:
        """Read some GPUs' processes, memory and instances, and nothing else, within a bounded time.

        A GPU of which nothing could be read is missing, or has an error.
        """

    def tend(self, uuid: str, wish: Mapping[str, str]) -> Tended | None:
        """Bring a GPU's modes (settings of config.model.Cleanup, but for `keep`) to what is wished; None: no answer."""

    def sample(self) -> NodeFacts:
        """Read every GPU once, within a bounded time; never raises for what a GPU or the driver does."""

    def take_xids(self) -> tuple[XidEvent, ...]:
        """Return the XIDs that came since the last call, in order, each once, repeats included."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when XIDs wait; -1 for none."""

    @property
    def has_kernel_log(self) -> bool:
        """Whether the kernel log can be read: while NVML is let go, it alone tells of XIDs."""

    def lend(self, between: bool) -> None:
        """Let NVML go at the end of each sample, look and tend from now on (`between`), or keep it open in between.

        Takes a bounded time where it is open now and is to be let go.
        """

    def leave(self) -> int:
        """Let NVML go altogether, till the next sample, look or tend; returns how many processes keep it all the same.

        Those can be ended by nobody (state D).
        """

    def close(self) -> None:
        """End what was started."""
