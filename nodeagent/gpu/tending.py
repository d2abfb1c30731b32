"""One GPU between two jobs, in the probe process: who is on it, and its modes as the site wishes them."""

from __future__ import annotations

from nodeagent.gpu.nvml import GpuFault, Library
from nodeagent.gpu.reading import Reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

COMPUTE_MODES = {"default": 0, "prohibited": 2, "exclusive_process": 3}
"""nvmlComputeMode_t."""
GRAPHICS, MEMORY = 0, 2
"""nvmlClockType_t."""
MILLI = 1000


def attend(library: Library, uuid: str, wish: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the answer to a look at a GPU, or with a `wish` to a tend; raises LibraryFault.

    A GPU that does not answer is a record with its error.
    """
    try:
        handle = library.handle_of(uuid)
        if wish is None:
            reading = Reading(library, handle)
            reading.identify()
            reading.read_use()
            return {"gpu": reading.record}
        tender = Tender(library, handle)
        tender.bring(wish)
    except GpuFault as fault:
        error = {"error": fault.code, "error_text": fault.text}
        return {"gpu": {"uuid": uuid, **error}} if wish is None else {"tended": error}
    return {"tended": {"changed": tender.changed, "refused": tender.refused}}


class Tender:
    """Brings the modes of one GPU to what is wished. `changed`: name → (before, after); `refused`: name → why."""

    def __init__(self, library: Library, handle: Any) -> None:
        self._library = library
        self._handle = handle
        self.changed: dict[str, tuple[Any, Any]] = {}
        self.refused: dict[str, str] = {}

    def bring(self, wish: Mapping[str, str]) -> None:
        """Change what differs, by the settings of config.model.Cleanup but `keep`; raises GpuFault, LibraryFault."""
        steps: dict[str, Callable[[str], None]] = {
            "compute_mode": self._compute_mode,
            "persistence": self._persistence,
            "power_limit": self._power_limit,
            "application_clocks": self._application_clocks,
        }
        for name, value in wish.items():
            steps[name](value)

    def _ask(self, function: str, *args: object) -> Any:
        return self._library.value(function, self._handle, *args)

    def _change(self, name: str, before: Any, after: Any, function: str, *args: object) -> None:
        """Call a setter, unless all is as wished; a value that NVML does not tell is set whatever it is."""
        if after is None:
            self.refused[name] = "NVML does not say what the default is"
        elif before != after:
            why = self._library.change(function, self._handle, *args)
            if why:
                self.refused[name] = why
            else:
                self.changed[name] = (before, after)

    def _compute_mode(self, wanted: str) -> None:
        mode = COMPUTE_MODES[wanted]
        self._change("compute_mode", self._ask("nvmlDeviceGetComputeMode"), mode, "nvmlDeviceSetComputeMode", mode)

    def _persistence(self, wanted: str) -> None:
        mode = int(wanted == "on")
        before = self._ask("nvmlDeviceGetPersistenceMode")
        self._change("persistence", before, mode, "nvmlDeviceSetPersistenceMode", mode)

    def _power_limit(self, wanted: str) -> None:
        limit = self._ask("nvmlDeviceGetPowerManagementDefaultLimit")
        if wanted != "default":
            limit = int(float(wanted) * MILLI)
        before = self._ask("nvmlDeviceGetPowerManagementLimit")
        self._change("power_limit", before, limit, "nvmlDeviceSetPowerManagementLimit", limit)

    def _application_clocks(self, wanted: str) -> None:
        before = self._clocks("nvmlDeviceGetApplicationsClock")
        if wanted == "default":
            after = self._clocks("nvmlDeviceGetDefaultApplicationsClock")
            self._change("application_clocks", before, after, "nvmlDeviceResetApplicationsClocks")
        else:
            memory, graphics = map(int, wanted.split(","))
            after = [memory, graphics]
            self._change("application_clocks", before, after, "nvmlDeviceSetApplicationsClocks", memory, graphics)

    def _clocks(self, function: str) -> list[int] | None:
        """Return the clocks of memory and graphics in MHz."""
        clocks = [self._ask(function, kind) for kind in (MEMORY, GRAPHICS)]
        return None if None in clocks else clocks
