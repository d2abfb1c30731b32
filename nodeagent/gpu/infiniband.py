"""InfiniBand ports as sysfs shows them. Lean: the probe process reads them, for a sick adapter may keep it waiting.

Source: Documentation/ABI/stable/sysfs-class-infiniband. Ethernet ports of such adapters, and the virtual functions of
an adapter that is split for virtual machines, are left out.
"""

from __future__ import annotations

import os
import threading

from nodeagent.gpu.procfs import entries, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def ports(sys: str) -> list[dict[str, Any]]:
    """Return the node's InfiniBand ports in the fields of host.Port; what cannot be read is left out."""
    home = f"{sys}/class/infiniband"
    return [port for device in entries(home) for port in _of_device(f"{home}/{device}", device)]


def _of_device(home: str, device: str) -> list[dict[str, Any]]:
    if os.path.lexists(f"{home}/device/physfn"):
        return []
    found = []
    for number in filter(str.isdigit, entries(f"{home}/ports")):
        path = f"{home}/ports/{number}"
        if text_of(f"{path}/link_layer").strip().lower() not in ("", "infiniband"):
            continue
        values = {
            "state": _leading(text_of(f"{path}/state"), ":"),
            "physical": _leading(text_of(f"{path}/phys_state"), ":"),
            "rate": _rate(text_of(f"{path}/rate")),
            "downed": _leading(text_of(f"{path}/counters/link_downed"), " "),
        }
        known = {key: value for key, value in values.items() if value is not None}
        found.append({"device": device, "number": int(number), **known})
    return found


def _leading(text: str, separator: str) -> int | None:
    """The number that a text like `4: ACTIVE` begins with."""
    word = text.partition(separator)[0].strip()
    return int(word) if word.isdigit() else None


def _rate(text: str) -> float | None:
    """Gbit/s of a text like `200 Gb/sec (4X HDR)`."""
    try:
        return float(text.split(maxsplit=1)[0])
    except (IndexError, ValueError):
        return None


class Watch:
    """Reads the ports in a thread of its own: an adapter whose firmware hangs answers after a minute, or never."""

    def __init__(self, sys: str) -> None:
        self._sys = sys
        self._thread: threading.Thread | None = None
        self._found: list[dict[str, Any]] = []

    def read(self, patience: float) -> dict[str, Any]:
        """Return what belongs into the host record: `ports`, or `ports_silent` where they gave no answer in time.

        Takes at most `patience` seconds, and next to nothing on a node without such ports.
        """
        if not os.path.isdir(f"{self._sys}/class/infiniband"):
            return {}
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._thread.join(patience)
        if self._thread.is_alive():
            return {"ports_silent": True}
        self._thread = None
        return {"ports": self._found}

    def _run(self) -> None:
        self._found = ports(self._sys)
