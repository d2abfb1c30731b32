"""Takes out of facts what names a machine or its owner: the same name becomes the same other name. Pure."""

from __future__ import annotations

from nodeagent.gpu.facts import NodeFacts
from nodeagent.gpu.plain import substitute

_BLANK = ("text",)  # a kernel message names processes
_UUIDS = ("uuid", "hung_uuid")


class Anonymous:
    """Renames UUIDs, serial numbers and boots, in the order in which they come; everything else stays as it was read.

    What is renamed keeps its form: `GPU-00000001-…` for a GPU, `MIG-…` for an instance, digits for a serial number.
    """

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], int] = {}

    def facts(self, facts: NodeFacts) -> NodeFacts:
        """Return one sweep without the names in it."""
        return substitute(facts, self._change)

    def _change(self, field: str, value: str) -> str:
        if not value:
            return value
        if field in _UUIDS:
            kind = value.partition("-")[0]
            number = self._number(kind, value)
            return f"{kind}-{number:08x}-0000-4000-8000-000000000000"
        if field == "serial":
            return f"{1_000_000_000_000 + self._number(field, value)}"
        if field == "boot_id":
            return f"boot-{self._number(field, value)}"
        return "" if field in _BLANK else value

    def _number(self, kind: str, value: str) -> int:
        names = self._names
        if (kind, value) not in names:
            names[kind, value] = 1 + sum(known == kind for known, _ in names)
        return names[kind, value]
