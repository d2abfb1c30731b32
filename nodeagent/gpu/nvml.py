"""NVML, the only module that imports pynvml. Runs in the probe process alone, since any call here can hang or crash.

Three kinds of answer. A value. None: NVML has no such value here (not supported, not in this driver or binding, no
right, not found …), which is never a zero. A fault: of one GPU (`GpuFault`: lost, reset required), or of NVML as a
whole (`LibraryFault`: no library, no driver, versions differ …).
Return codes are those of nvml.h, `nvmlReturn_t`.
"""

from __future__ import annotations

import ctypes

import pynvml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

UNINITIALIZED = 1
NOT_SUPPORTED = 3
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
LIBRARY_NOT_FOUND = 12
GPU_IS_LOST = 15
RESET_REQUIRED = 16
VERSION_MISMATCH = 18

OF_GPU = (GPU_IS_LOST, RESET_REQUIRED)
OF_LIBRARY = (UNINITIALIZED, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, VERSION_MISMATCH)
FAILURES = (8, 10, 11, 17, 20, 28, 999)
"""Codes that say nothing about the question and something about the GPU or its driver: insufficient power, timeout, IRQ
issue, operating system, memory, GPU not found, unknown. One of them is no value; a GPU that answers little else is not
read at all."""
XID_EVENTS = 0x8
"""nvmlEventTypeXidCriticalError."""
NO_INSTANCE = 0xFFFFFFFF

_VALUE_MEMBERS = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
"""nvmlValueType_t -> member of the union that a field value comes in."""


class NvmlFault(Exception):
    """NVML did not answer a call that everything else depends on; `code` is its return code."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.text = text
        super().__init__(code, text)


class GpuFault(NvmlFault):
    """One GPU cannot be read."""


class LibraryFault(NvmlFault):
    """NVML as a whole cannot be used."""


def _code(error: Any) -> int:
    return int(error.value)


class Library:
    """NVML between `open` and `close`."""

    def __init__(self) -> None:
        self.is_open = False
        self.answered = 0
        """Calls that gave a value."""
        self.failed = 0
        """Calls that gave one of FAILURES; `last_failure` is the code and the words of the last of them."""
        self.last_failure = (0, "")

    def open(self) -> None:
        """Initialise NVML if it is not; raises LibraryFault, also where there is no library at all."""
        if self.is_open:
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise LibraryFault(_code(error), str(error)) from error
        self.is_open = True

    def close(self) -> None:
        """Let NVML go: afterwards this process is no client of any GPU."""
        if not self.is_open:
            return
        self.is_open = False
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            return  # it was gone already: that is what was wanted

    def value(self, name: str, *args: object) -> Any:
        """Call an NVML function; None where there is no value. Raises GpuFault and LibraryFault."""
        function = getattr(pynvml, name, None)
        if function is None:
            return None  # a binding older than the function
        try:
            found = function(*args)
        except pynvml.NVMLError as error:
            code = _code(error)
            if code in OF_GPU:
                raise GpuFault(code, str(error)) from error
            if code in OF_LIBRARY:
                raise LibraryFault(code, str(error)) from error
            if code in FAILURES:
                self.failed += 1
                self.last_failure = (code, str(error))
            return None
        except UnicodeDecodeError:
            return None  # a text that a broken infoROM filled with anything
        self.answered += 1
        return found

    def count(self) -> int:
        """Return how many GPUs NVML enumerates; raises LibraryFault."""
        try:
            return int(pynvml.nvmlDeviceGetCount())
        except pynvml.NVMLError as error:
            raise LibraryFault(_code(error), str(error)) from error

    def handle(self, index: int) -> Any:
        """Return the handle of the GPU of that index; raises GpuFault with whatever code NVML gives, LibraryFault."""
        try:
            return pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError as error:
            code = _code(error)
            fault = LibraryFault if code in OF_LIBRARY else GpuFault
            raise fault(code, str(error)) from error

    def handle_of(self, uuid: str) -> Any:
        """Return the handle of a GPU by its UUID; raises GpuFault with whatever code NVML gives, LibraryFault."""
        try:
            return pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError as error:
            code = _code(error)
            fault = LibraryFault if code in OF_LIBRARY else GpuFault
            raise fault(code, str(error)) from error

    def change(self, name: str, *args: object) -> str:
        """Call one of NVML's setters; returns why it was refused, else nothing. Raises GpuFault, LibraryFault."""
        function = getattr(pynvml, name, None)
        if function is None:
            return f"this NVML binding has no {name}"
        try:
            function(*args)
        except pynvml.NVMLError as error:
            code = _code(error)
            if code in OF_GPU:
                raise GpuFault(code, str(error)) from error
            if code in OF_LIBRARY:
                raise LibraryFault(code, str(error)) from error
            return str(error)
        return ""

    def fields(self, handle: Any, ids: Sequence[int]) -> dict[int, float]:
        """Return the field values (NVML_FI_*) that this GPU has, by id, in one call."""
        answer = self.value("nvmlDeviceGetFieldValues", handle, list(ids))
        found = {}
        for item in answer or ():
            if item.nvmlReturn != 0:
                continue
            value = getattr(item.value, _VALUE_MEMBERS.get(item.valueType, ""), None)
            if value is not None:
                found[int(item.fieldId)] = value
        return found

    def fabric(self, handle: Any) -> tuple[int, int] | None:
        """Return NVLink fabric's (state, status), None where the GPU is in no fabric."""
        shape = getattr(pynvml, "c_nvmlGpuFabricInfo_v2_t", None)
        if shape is None:
            return None
        info = shape()
        if self.value("nvmlDeviceGetGpuFabricInfoV", handle, ctypes.byref(info)) is None:
            return None
        return int(info.state), int(info.status)

    def sram_threshold_exceeded(self, handle: Any) -> bool | None:
        """Say whether errors in caches passed the limit of NVIDIA's field diagnostic; None where nobody counts."""
        shape = getattr(pynvml, "c_nvmlEccSramErrorStatus_v1_t", None)
        if shape is None:
            return None
        status = shape()
        if self.value("nvmlDeviceGetSramEccErrorStatus", handle, ctypes.byref(status)) is None:
            return None
        return bool(status.bThresholdExceeded)


class XidWatch:
    """An event set: the XIDs of the GPUs registered with it, from the registration on."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._set = library.value("nvmlEventSetCreate")
        self._gpus: dict[int, str] = {}
        self.failed = self._set is None

    def register(self, handle: Any, uuid: str) -> None:
        """Ask for the XIDs of this GPU too. One that has no events never reports. Raises LibraryFault."""
        address = _address(handle)
        if self.failed or address in self._gpus:
            return
        try:
            self._library.value("nvmlDeviceRegisterEvents", handle, XID_EVENTS, self._set)
        except GpuFault:
            return  # to be tried again at the next sweep
        self._gpus[address] = uuid

    def wait(self, milliseconds: int) -> tuple[str, int, int | None, int | None] | None:
        """Wait for the next XID: (GPU's UUID, XID, GPU instance, compute instance); None if none came.

        Any answer but an event or a time-out ends the watch: `failed` is set, and a new one is to be made.
        """
        try:
            data = pynvml.nvmlEventSetWait_v2(self._set, milliseconds)
        except pynvml.NVMLError as error:
            self.failed = _code(error) != TIMEOUT
            return None
        if not data.eventType & XID_EVENTS:
            return None
        uuid = self._gpus.get(_address(data.device), "")
        return uuid, int(data.eventData), _instance(data.gpuInstanceId), _instance(data.computeInstanceId)

    def close(self) -> None:
        """Free the set; nobody may be waiting on it."""
        if self._set is not None:
            try:
                self._library.value("nvmlEventSetFree", self._set)
            except NvmlFault:
                pass  # NVML is gone, and the set with it
        self._set = None
        self.failed = True


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _instance(number: int) -> int | None:
    return None if number == NO_INSTANCE else int(number)
