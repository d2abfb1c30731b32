"""One GPU's values from NVML's calls, in base units, under the names of GpuFacts' fields. Runs in the probe process.

Knows NVML's functions by name and calls them through a `Library` (nvml.py, or a test's). Numbers of enumerations are
those of nvml.h. What NVML has no value for is left out of the record, so that it becomes None, never 0.
"""

from __future__ import annotations

from nodeagent.gpu.nvml import RESET_REQUIRED, GpuFault
from nodeagent.gpu.procfs import normal_bus_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Calls(Protocol):
        """What is asked of NVML (see nvml.Library)."""

        def value(self, name: str, *args: object) -> Any:
            """Call a function by name."""

        def fields(self, handle: Any, ids: tuple[int, ...]) -> dict[int, float]:
            """Read field values."""

        def fabric(self, handle: Any) -> tuple[int, int] | None:
            """Read the fabric's state and status."""

        def sram_threshold_exceeded(self, handle: Any) -> bool | None:
            """Read NVIDIA's own judgement of the errors in caches."""


MEGA = 1e6
MILLI = 1e-3
PERCENT = 1e-2
MEMORY_V2 = 0x02000028
"""nvmlMemory_v2: the structure's size and version."""
NOT_AVAILABLE = (1 << 64) - 1
MAX_NVLINKS = 36
SM_CLOCK = 1
"""nvmlClockType_t."""

FI_MEMORY_TEMPERATURE, FI_RECOVERY_ACTION = 82, 230
FI_RESET_STATUS, FI_DRAIN_AND_RESET_STATUS = 226, 227
FI_NVLINK_RECOVERIES = 59
FI_NVLINK_COUNT, FI_NVLINK_ERRORS = 91, (38, 45, 52, FI_NVLINK_RECOVERIES)
"""NVML_FI_DEV_*: totals over a GPU's links of CRC errors in flits, in data, of replays, of recoveries."""
FIELD_NAMES = {
    FI_MEMORY_TEMPERATURE: "memory_temperature",
    FI_RECOVERY_ACTION: "recovery_action",
    FI_RESET_STATUS: "reset_status",
    FI_DRAIN_AND_RESET_STATUS: "drain_and_reset_status",
}
FIELDS = (*FIELD_NAMES, FI_NVLINK_COUNT, *FI_NVLINK_ERRORS)

CHANGING: tuple[tuple[str, str, tuple[int, ...], float], ...] = (
    ("temperature", "nvmlDeviceGetTemperature", (0,), 1.0),
    ("temperature_margin", "nvmlDeviceGetMarginTemperature", (), 1.0),
    ("power", "nvmlDeviceGetPowerUsage", (), MILLI),
    ("power_limit", "nvmlDeviceGetEnforcedPowerLimit", (), MILLI),
    ("energy", "nvmlDeviceGetTotalEnergyConsumption", (), MILLI),
    ("sm_clock", "nvmlDeviceGetClockInfo", (SM_CLOCK,), MEGA),
    ("memory_clock", "nvmlDeviceGetClockInfo", (2,), MEGA),
    ("slowdown_reasons", "nvmlDeviceGetCurrentClocksEventReasons", (), 1),
    ("performance_state", "nvmlDeviceGetPerformanceState", (), 1),
    ("pcie_generation", "nvmlDeviceGetCurrPcieLinkGeneration", (), 1),
    ("pcie_width", "nvmlDeviceGetCurrPcieLinkWidth", (), 1),
    ("pcie_replays", "nvmlDeviceGetPcieReplayCounter", (), 1),
    ("ecc_uncorrected", "nvmlDeviceGetTotalEccErrors", (1, 0), 1),
    ("ecc_uncorrected_total", "nvmlDeviceGetTotalEccErrors", (1, 1), 1),
    ("ecc_corrected", "nvmlDeviceGetTotalEccErrors", (0, 0), 1),
    ("ecc_corrected_total", "nvmlDeviceGetTotalEccErrors", (0, 1), 1),
    ("compute_mode", "nvmlDeviceGetComputeMode", (), 1),
    ("persistence", "nvmlDeviceGetPersistenceMode", (), 1),
)
"""(field, function, arguments, what NVML's unit is in ours): read in each sweep."""
FALLBACKS = {
    "temperature": ("nvmlDeviceGetTemperatureV", (0,)),
    "power_limit": ("nvmlDeviceGetPowerManagementLimit", ()),
    "slowdown_reasons": ("nvmlDeviceGetCurrentClocksThrottleReasons", ()),
}
LASTING: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("minor", "nvmlDeviceGetMinorNumber", ()),
    ("name", "nvmlDeviceGetName", ()),
    ("serial", "nvmlDeviceGetSerial", ()),
    ("vbios", "nvmlDeviceGetVbiosVersion", ()),
    ("pcie_generation_max", "nvmlDeviceGetMaxPcieLinkGeneration", ()),
    ("pcie_width_max", "nvmlDeviceGetMaxPcieLinkWidth", ()),
    ("shutdown_temperature", "nvmlDeviceGetTemperatureThreshold", (0,)),
    ("slowdown_temperature", "nvmlDeviceGetTemperatureThreshold", (1,)),
    ("memory_max_temperature", "nvmlDeviceGetTemperatureThreshold", (2,)),
)
"""Read once for each GPU as long as NVML is open."""
BOOLEAN = ("persistence",)


class Reading:
    """One GPU in one sweep: `record` fills up with the fields of GpuFacts."""

    def __init__(self, library: Calls, handle: Any) -> None:
        self._library = library
        self._handle = handle
        self.record: dict[str, Any] = {}
        self.nvlinks: list[tuple[int, int, str]] = []
        """Links that are up: (NVML's version number, remote type, remote bus id)."""

    def identify(self) -> None:
        """Read UUID and bus id; raises GpuFault."""
        uuid = self._library.value("nvmlDeviceGetUUID", self._handle)
        pci = self._library.value("nvmlDeviceGetPciInfo", self._handle)
        self._set("uuid", None if uuid is None else _text(uuid))
        self._set("bus_id", None if pci is None else normal_bus_id(_text(pci.busId)))

    def read(self, lasting: dict[str, Any], link_ends: dict[int, tuple[int, int, str]]) -> None:
        """Read everything else.

        `lasting` and `link_ends` are the caller's memory of this GPU: filled at the first reading, used at later ones.
        A GPU that asks for a reset is read as far as it answers. Raises GpuFault where it is lost, LibraryFault.
        """
        if not lasting:
            lasting.update(self._lasting())
        self.record.update(lasting)
        fields = self._fields()
        for name, function, args, scale in CHANGING:
            self._scalar(name, function, args, scale)
        self._load()
        self._memory_errors()
        self._mig()
        self._processes()
        self._nvlink(fields, link_ends)

    def read_use(self) -> None:
        """Read only what tells whether somebody uses the GPU; raises GpuFault where it is lost, LibraryFault."""
        self._load()
        self._mig()
        self._processes()

    def _set(self, name: str, value: Any) -> None:
        if value is not None:
            self.record[name] = value

    def _value(self, function: str, *args: object) -> Any:
        """NVML's answer about this GPU; that it asks for a reset is noted, and no value."""
        try:
            return self._library.value(function, self._handle, *args)
        except GpuFault as fault:
            if fault.code != RESET_REQUIRED:
                raise
            self.record.update(error=fault.code, error_text=fault.text)
            return None

    def _scalar(self, name: str, function: str, args: tuple[int, ...], scale: float) -> None:
        value = self._value(function, *args)
        if value is None and name in FALLBACKS:
            function, args = FALLBACKS[name]
            value = self._value(function, *args)
        if value is None:
            return
        self.record[name] = bool(value) if name in BOOLEAN else value * scale

    def _lasting(self) -> dict[str, Any]:
        found = {}
        for name, function, args in LASTING:
            value = self._value(function, *args)
            if value is not None:
                found[name] = _text(value) if isinstance(value, (bytes, str)) else value
        clock = self._value("nvmlDeviceGetMaxClockInfo", SM_CLOCK)
        if clock is not None:
            found["sm_clock_max"] = clock * MEGA
        return found

    def _fields(self) -> dict[int, float]:
        try:
            fields = self._library.fields(self._handle, FIELDS)
        except GpuFault as fault:
            if fault.code != RESET_REQUIRED:
                raise
            self.record.update(error=fault.code, error_text=fault.text)
            fields = {}
        for field, name in FIELD_NAMES.items():
            self._set(name, fields.get(field))
        return fields

    def _load(self) -> None:
        memory = self._value("nvmlDeviceGetMemoryInfo", MEMORY_V2)
        if memory is None:  # drivers before 510; their figure of what is used includes the driver's reserve
            memory = self._value("nvmlDeviceGetMemoryInfo")
        if memory is not None:
            self.record.update(memory_used=int(memory.used), memory_total=int(memory.total))
        rates = self._value("nvmlDeviceGetUtilizationRates")
        if rates is not None:
            self.record.update(utilization=rates.gpu * PERCENT, memory_utilization=rates.memory * PERCENT)

    def _memory_errors(self) -> None:
        ecc = self._value("nvmlDeviceGetEccMode")
        self._set("ecc_enabled", None if ecc is None else bool(ecc[0]))
        self._sram()
        rows = self._value("nvmlDeviceGetRemappedRows")
        if rows is not None:
            correctable, uncorrectable, pending, failed = rows
            self.record.update(remapped_correctable=correctable, remapped_uncorrectable=uncorrectable)
            self.record.update(remapping_pending=bool(pending), remapping_failed=bool(failed))
            banks = self._value("nvmlDeviceGetRowRemapperHistogram")
            self._set("remap_banks_exhausted", None if banks is None else int(banks.none))
            return  # such a GPU does not retire pages
        pages = [self._value("nvmlDeviceGetRetiredPages", cause) for cause in (0, 1)]
        known = [len(some) for some in pages if some is not None]
        self._set("retired_pages", sum(known) if known else None)
        pending = self._value("nvmlDeviceGetRetiredPagesPendingStatus")
        self._set("retirement_pending", None if pending is None else bool(pending))

    def _sram(self) -> None:
        if "error" not in self.record:
            self._set("sram_threshold_exceeded", self._library.sram_threshold_exceeded(self._handle))

    def _mig(self) -> None:
        mode = self._value("nvmlDeviceGetMigMode")
        if mode is None:
            return
        self.record["mig_enabled"] = bool(mode[0])
        if not mode[0]:
            return
        instances = []
        for index in range(self._value("nvmlDeviceGetMaxMigDeviceCount") or 0):
            instance = self._value("nvmlDeviceGetMigDeviceHandleByIndex", index)
            if instance is not None:
                instances.append(_mig_instance(self._library, instance))
        self.record["mig"] = [instance for instance in instances if instance is not None]

    def _processes(self) -> None:
        found: dict[int, int | None] = {}
        for kind in ("Compute", "Graphics", "MPSCompute"):
            listed = self._value(f"nvmlDeviceGet{kind}RunningProcesses")
            if kind == "Compute" and listed is not None:
                self.record["processes_known"] = True
            for process in listed or ():
                memory = None if process.usedGpuMemory in (None, NOT_AVAILABLE) else int(process.usedGpuMemory)
                before = found.get(process.pid)
                found[int(process.pid)] = memory if before is None else max(before, memory or 0)
        self.record["processes"] = [{"pid": pid, "memory": memory} for pid, memory in found.items()]

    def _nvlink(self, fields: dict[int, float], ends: dict[int, tuple[int, int, str]]) -> None:
        total = self._count_links(fields)
        if not total:
            return
        errors = [fields[field] for field in FI_NVLINK_ERRORS if field in fields]
        self._set("nvlink_errors", int(sum(errors)) if errors else None)
        recoveries = fields.get(FI_NVLINK_RECOVERIES)
        self._set("nvlink_recoveries", None if recoveries is None else int(recoveries))
        self.record["nvlink_total"] = total
        for link in range(total):
            if self._value("nvmlDeviceGetNvLinkState", link) != 1:
                ends.pop(link, None)
                continue
            if link not in ends:
                ends[link] = self._link_end(link)
            self.nvlinks.append(ends[link])
        self.record["nvlink_active"] = len(self.nvlinks)
        fabric = None if "error" in self.record else self._library.fabric(self._handle)
        if fabric is not None:
            self.record.update(fabric_state=fabric[0], fabric_status=fabric[1])

    def _count_links(self, fields: dict[int, float]) -> int:
        if FI_NVLINK_COUNT in fields:
            return min(int(fields[FI_NVLINK_COUNT]), MAX_NVLINKS)
        links = 0  # a driver without that field
        while links < MAX_NVLINKS and self._value("nvmlDeviceGetNvLinkState", links) is not None:
            links += 1
        return links

    def _link_end(self, link: int) -> tuple[int, int, str]:
        version = self._value("nvmlDeviceGetNvLinkVersion", link)
        kind = self._value("nvmlDeviceGetNvLinkRemoteDeviceType", link)
        pci = self._value("nvmlDeviceGetNvLinkRemotePciInfo", link)
        bus_id = "" if pci is None else normal_bus_id(_text(pci.busId))
        return version or 0, -1 if kind is None else kind, bus_id


def _mig_instance(library: Calls, handle: Any) -> dict[str, Any] | None:
    def ask(function: str, *args: object) -> Any:
        return library.value(function, handle, *args)

    uuid = ask("nvmlDeviceGetUUID")
    gpu_instance, compute_instance = ask("nvmlDeviceGetGpuInstanceId"), ask("nvmlDeviceGetComputeInstanceId")
    if uuid is None or gpu_instance is None or compute_instance is None:
        return None  # it was destroyed between the two calls
    record = {"uuid": _text(uuid), "gpu_instance": gpu_instance, "compute_instance": compute_instance}
    memory = ask("nvmlDeviceGetMemoryInfo", MEMORY_V2) or ask("nvmlDeviceGetMemoryInfo")
    if memory is not None:
        record.update(memory_total=int(memory.total), memory_used=int(memory.used))
    profile = _text(ask("nvmlDeviceGetName") or "").rpartition("MIG ")[2]
    return {**record, "profile": profile}


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
