"""What the judgement of one cycle hands to the next: strikes, latches, baselines. Frozen; plain data on demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nodeagent.errors import UnknownFormat
from nodeagent.health import window
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.window import Windows

FORMAT = 1


@dataclass(frozen=True)
class Latch:
    """A grave XID that nothing has cleared yet; at the node, one of an NVSwitch.

    `energy` is the GPU's energy counter (joules) as last read since the XID, None if it was never read; `boot_id` is
    the boot in which the XID came; `where` names the MIG instance, if the XID did, or the switch. `times` is how often
    it came. `waiting` are, for a switch's, the GPUs that have not been initialised anew since.
    """

    xid: int
    monotonic: float
    boot_id: str
    energy: float | None = None
    where: str = ""
    times: int = 1
    waiting: tuple[str, ...] = ()


@dataclass(frozen=True)
class EccWatch:
    """Uncorrected ECC errors: `last` is the count just read, `baseline` the one at `since` that it is compared with.

    `tripped` says that it rose by more than is allowed; then the baseline stays, so it is so until the counter starts
    anew.
    """

    baseline: int
    last: int
    since: float
    tripped: bool = False


@dataclass(frozen=True)
class Standing:
    """What one check found at one severity, kept until the unit has been clean for long enough.

    `clean` counts the clean cycles in a row, `clean_since` is when the first of them was (monotonic seconds).
    """

    findings: tuple[Finding, ...]
    clean: int = 0
    clean_since: float | None = None

    @property
    def check(self) -> str:
        """The check that found it."""
        return self.findings[0].check

    @property
    def severity(self) -> Severity:
        """The severity that all of its findings share."""
        return self.findings[0].severity


@dataclass(frozen=True)
class UnitMemory:
    """One GPU as it is remembered in this boot, or (`uuid` empty) the node as a whole.

    Identity is the last one known. `state` is the last verdict, empty before the first; `since` when it began
    (monotonic seconds). `strikes` counts, by check, the cycles in a row in which it found something, `rows` has when
    the first of them was, `stamps` when the last ones were: as many as the check's rule looks at, at least one.
    `energy` is the last reading. `absent` says that the last complete sweep had no such GPU. `windows` are the
    readings followed over time, by the name of their series; `nvlinks` is the most NVLinks that were up.
    """

    uuid: str
    index: int = -1
    minor: int = -1
    bus_id: str = ""
    model: str = ""
    serial: str = ""
    slot: str = ""
    numa_node: int = -1
    state: str = ""
    since: float = 0.0
    energy: float | None = None
    absent: bool = False
    ecc: EccWatch | None = None
    latches: tuple[Latch, ...] = ()
    strikes: Mapping[str, int] = field(default_factory=dict)
    rows: Mapping[str, float] = field(default_factory=dict)
    stamps: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    standing: tuple[Standing, ...] = ()
    windows: Windows = field(default_factory=dict)
    nvlinks: int = 0

    @property
    def place(self) -> str:
        """The GPU as a line for a person names it."""
        name = f"GPU {self.index}" if self.index >= 0 else "GPU"
        return f"{name} {self.bus_id or self.uuid}"


NODE = UnitMemory("")


@dataclass(frozen=True)
class Memory:
    """Everything that `judge` remembers; it is worth something only within the boot `boot_id`.

    `kernel_sequence` is the kernel's last log record that was judged: what comes after it is news, what was before not.
    """

    boot_id: str = ""
    node: UnitMemory = NODE
    units: Mapping[str, UnitMemory] = field(default_factory=dict)
    kernel_sequence: int | None = None


def explains(memory: Memory, uuid: str) -> bool:
    """Say whether anything is held against that GPU: a latched XID, counted ECC errors, a finding that stands."""
    unit = memory.units.get(uuid)
    return unit is not None and bool(unit.latches or unit.standing or unit.ecc is not None)


def clear(memory: Memory, uuid: str) -> Memory:
    """Return the memory after an administrator's restore of that GPU.

    All that is held against it is forgotten; what is found anew counts again. Were it kept until `recover` clean cycles
    have passed, the agent would retire at once what was just restored. A GPU that is gone is forgotten altogether.
    """
    unit = memory.units.get(uuid)
    if unit is None:
        return memory
    units = dict(memory.units)
    if unit.absent:
        del units[uuid]
    else:
        units[uuid] = replace(
            unit, latches=(), ecc=None, strikes={}, rows={}, stamps={}, standing=(), windows={}, nvlinks=0
        )
    return replace(memory, units=units)


def to_plain(memory: Memory) -> dict[str, Any]:
    """Return the memory as JSON has it, for `from_plain`."""
    return {
        "format": FORMAT,
        "boot_id": memory.boot_id,
        "node": _plain_unit(memory.node),
        "units": [_plain_unit(unit) for unit in memory.units.values()],
        "kernel_sequence": memory.kernel_sequence,
    }


def from_plain(plain: Mapping[str, Any]) -> Memory:
    """Return the memory that `to_plain` wrote.

    Raises:
        UnknownFormat: another release wrote it, or it is damaged: then what was latched is not known.

    """
    if not isinstance(plain, Mapping) or plain.get("format") != FORMAT:
        raise UnknownFormat("health memory", str(plain)[:40])
    try:
        units = [_unit(entry) for entry in plain["units"]]
        read = plain.get("kernel_sequence")
        sequence = None if read is None else int(read)
        return Memory(str(plain["boot_id"]), _unit(plain["node"]), {unit.uuid: unit for unit in units}, sequence)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UnknownFormat("health memory", f"{type(error).__name__} {error}") from error


def _plain_unit(unit: UnitMemory) -> dict[str, Any]:
    plain = dict(vars(unit))
    plain["ecc"] = None if unit.ecc is None else dict(vars(unit.ecc))
    plain["latches"] = [dict(vars(latch)) for latch in unit.latches]
    plain["strikes"] = dict(unit.strikes)
    plain["windows"] = window.to_plain(unit.windows)
    plain["rows"] = dict(unit.rows)
    plain["stamps"] = {check: list(stamps) for check, stamps in unit.stamps.items()}
    plain["standing"] = [
        {"clean": one.clean, "clean_since": one.clean_since, "findings": list(map(_plain_finding, one.findings))}
        for one in unit.standing
    ]
    return plain


def _plain_finding(finding: Finding) -> dict[str, Any]:
    return {**vars(finding), "severity": finding.severity.name, "action": finding.action.name}


def _unit(plain: Mapping[str, Any]) -> UnitMemory:
    values = dict(plain)
    values["ecc"] = None if plain["ecc"] is None else EccWatch(**plain["ecc"])
    values["latches"] = tuple(
        Latch(**{**latch, "waiting": tuple(latch.get("waiting", ()))}) for latch in plain["latches"]
    )
    values["strikes"] = {str(check): int(count) for check, count in plain["strikes"].items()}
    values["windows"] = window.from_plain(plain.get("windows", {}))  # the first releases kept none
    values["rows"] = {str(check): float(since) for check, since in plain.get("rows", {}).items()}
    values["stamps"] = {str(check): tuple(map(float, found)) for check, found in plain.get("stamps", {}).items()}
    values["standing"] = tuple(_standing(one) for one in plain["standing"])
    return UnitMemory(**values)


def _standing(plain: Mapping[str, Any]) -> Standing:
    findings = tuple(
        Finding(**{**one, "severity": Severity[one["severity"]], "action": RecoveryAction[one["action"]]})
        for one in plain["findings"]
    )
    if not findings:
        raise ValueError("a standing without findings")
    since = plain.get("clean_since")
    return Standing(findings, int(plain["clean"]), None if since is None else float(since))
