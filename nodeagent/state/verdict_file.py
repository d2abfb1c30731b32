"""The agent's last word for hooks: `state_dir/verdict`. Lean."""

from nodeagent.errors import NoVerdict, UnknownFormat
from nodeagent.state.files import Directory, decode_lines, encode_pairs, escape, short, unescape

VERDICT = "verdict"
OK, DEGRADED, FAILED, UNKNOWN = "OK", "DEGRADED", "FAILED", "UNKNOWN"
STATES = (OK, DEGRADED, FAILED, UNKNOWN)
_COLUMNS = 10


class UnitLine:
    """One unit: identity, place and state. `index` and `minor` are -1 where NVML gave none, `numa` likewise.

    `links` holds, for each unit in the file's order, the quality of the connection to it (0 for itself). `gpu` is the
    UUID of the GPU that the unit is, or is an instance of. `caps` are the minors of an instance's device files
    /dev/nvidia-caps/nvidia-capN; empty for a GPU, and where they are not known. `slots` is how many jobs may share the
    unit at a time: with more than one, `GPU-…@0` to `GPU-…@(slots - 1)` are locked in its place (lock/occupancy.py).
    `memory` is its size in bytes, 0 where that is not known.
    """

    __slots__ = (
        *("bus_id", "caps", "gpu", "index", "links", "memory", "minor", "model", "numa", "slots", "state"),
        *("unit", "why"),
    )

    def __init__(
        self,
        unit: str,
        index: int,
        minor: int,
        bus_id: str,
        model: str,
        numa: int,
        links: "tuple[int, ...]",
        state: str,
        why: str = "",
        gpu: str = "",
        caps: "tuple[int, ...]" = (),
        slots: int = 1,
        memory: int = 0,
    ) -> None:
        self.gpu = gpu or unit
        self.caps = caps
        self.slots = slots
        self.memory = memory
        self.unit = unit
        self.index = index
        self.minor = minor
        self.bus_id = bus_id
        self.model = model
        self.numa = numa
        self.links = links
        self.state = state
        self.why = why

    def copy(self) -> "UnitLine":
        """Return another line that says the same."""
        other = UnitLine.__new__(UnitLine)
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        return other


class VerdictFile:
    """The verdict of one cycle.

    `boot_id` and `monotonic` (seconds) say when; `pid` whose; `driver` is the running kernel module's version and
    `binds` the bind list of the driver set that was checked for it (empty: none); `node_state` and `node_why` judge
    the node as a whole; `interval` (seconds) is how often the agent writes.
    """

    __slots__ = ("binds", "boot_id", "driver", "interval", "monotonic", "node_state", "node_why", "pid", "units")

    def __init__(
        self,
        boot_id: str,
        monotonic: float,
        units: "tuple[UnitLine, ...]",
        pid: int = 0,
        interval: float = 0.0,
        driver: str = "",
        binds: str = "",
        node_state: str = OK,
        node_why: str = "",
    ) -> None:
        self.boot_id = boot_id
        self.monotonic = monotonic
        self.units = units
        self.pid = pid
        self.interval = interval
        self.driver = driver
        self.binds = binds
        self.node_state = node_state
        self.node_why = node_why

    def encode(self) -> str:
        """Return the file's text."""
        head = encode_pairs(
            [
                ("boot_id", self.boot_id),
                ("monotonic", f"{self.monotonic:.3f}"),
                ("interval", f"{self.interval:g}"),
                ("pid", str(self.pid)),
                ("driver", self.driver),
                ("binds", self.binds),
                ("node_state", self.node_state),
                ("node_why", short(self.node_why)),
            ]
        )
        lines = [
            "\t".join(
                (
                    line.unit,
                    str(line.index),
                    str(line.minor),
                    line.bus_id,
                    escape(line.model),
                    str(line.numa),
                    ",".join(map(str, line.links)),
                    line.state,
                    escape(short(line.why)),
                    line.gpu,
                    ",".join(map(str, line.caps)),
                    str(line.slots),
                    str(line.memory),
                )
            )
            for line in self.units
        ]
        return head + "".join(f"{line}\n" for line in lines)


def decode_verdict(what: str, text: str) -> VerdictFile:
    """Read a verdict file's text.

    Raises:
        UnknownFormat: another release wrote it, or it is damaged.

    """
    pairs = {}
    units = []
    try:
        for line in decode_lines(what, text):
            fields = line.split("\t")
            if len(fields) == 1:
                key, _, value = line.partition("=")
                pairs[key] = unescape(value)
                continue
            unit, index, minor, bus_id, model, numa, links, state, why, gpu = fields[:_COLUMNS]
            if state not in STATES:
                raise UnknownFormat(what, line)
            place = (unit, int(index), int(minor), bus_id, unescape(model), int(numa), _numbers(links))
            # These came later: a line of an older release ends before one of them.
            caps, slots, memory = (fields[_COLUMNS:] + ["", "1", "0"][len(fields) - _COLUMNS :])[:3]
            units.append(UnitLine(*place, state, unescape(why), gpu, _numbers(caps), int(slots), int(memory)))
        return VerdictFile(
            pairs["boot_id"],
            float(pairs["monotonic"]),
            tuple(units),
            int(pairs["pid"]),
            float(pairs["interval"]),
            pairs["driver"],
            pairs["binds"],
            pairs["node_state"],
            pairs["node_why"],
        )
    except (KeyError, ValueError) as error:
        raise UnknownFormat(what, str(error)) from error


def _numbers(text: str) -> "tuple[int, ...]":
    return tuple(map(int, text.split(","))) if text else ()


def read_verdict(state: Directory) -> VerdictFile:
    """Return the agent's last word.

    Raises:
        NoVerdict: there is none.
        UnknownFormat, UntrustedFile: it cannot be believed.

    """
    try:
        return decode_verdict(VERDICT, state.read(VERDICT))
    except FileNotFoundError as error:
        raise NoVerdict(f"{state.path}/{VERDICT}") from error
