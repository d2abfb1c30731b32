"""Which NVIDIA devices a grant may open and which not: by file name for us, by number for the kernel. Lean."""

import os

from nodeagent.errors import NotIsolated
from nodeagent.state.boot import read_start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nodeagent.state.verdict_file import UnitLine

NVIDIA_MAJOR = 195  # Documentation/admin-guide/devices.txt
_CAPS = "nvidia-caps"
_CAP = "nvidia-cap"
_FIRST_INSTANCE_CAP = 3  # 1 and 2 are MIG's `config` and `monitor`: root's, by their mode
_S_IFMT, _S_IFCHR = 0o170000, 0o020000


class Device:
    """A character device: its number, and the file by which it can be opened (empty: none is there now)."""

    __slots__ = ("major", "minor", "path")

    def __init__(self, major: int, minor: int, path: str = "") -> None:
        self.major = major
        self.minor = minor
        self.path = path

    def __repr__(self) -> str:
        return f"Device({self.major}, {self.minor}, {self.path!r})"

    @property
    def number(self) -> "tuple[int, int]":
        """What the kernel goes by."""
        return self.major, self.minor


def files_of(dev: str, unit: "UnitLine") -> "list[str]":
    """Return the device files that are a unit's own: its GPU's, and those of its MIG instance.

    Raises:
        NotIsolated: they are not known, so that closing all others would close these too.

    """
    if unit.minor < 0:
        raise NotIsolated("", f"the device file of {unit.unit} is not known")
    if unit.unit.startswith("MIG-") and not unit.caps:
        raise NotIsolated("", f"the capability devices of {unit.unit} are not known")
    return _paths(dev, unit)


def split(
    dev: str, known: "Iterable[UnitLine]", granted: "Iterable[UnitLine]", proc: str = "/proc"
) -> "tuple[list[Device], list[Device], list[Device]]":
    """Return the devices of a grant in its own order, those of all other units of the node, and those of everybody.

    A device of a unit that the agent knows counts by its number where it has no file now: nvidia-modprobe makes one for
    whoever asks. A file that no known unit has counts as somebody else's.

    Raises:
        NotIsolated: the granted units' own files are not known.

    """
    own_files = list(dict.fromkeys(path for unit in granted for path in files_of(dev, unit)))
    found = {path: device for path in _nvidia_files(dev) for device in [_device(path)] if device is not None}
    of_units = [path for unit in known if unit.minor >= 0 for path in _paths(dev, unit)]
    missing = [path for path in dict.fromkeys((*own_files, *of_units)) if path not in found]
    if missing:
        caps = next((device.major for path, device in found.items() if f"/{_CAPS}/" in path), -1)
        for path in missing:
            device = _without_file(path, caps, proc)
            if device is not None:
                found[path] = device
    own = [found[path] for path in own_files if path in found]
    spared = {device.number for device in own}
    rest = [(path, device) for path, device in found.items() if path not in own_files]
    others = [device for path, device in rest if _is_units(path) and device.number not in spared]
    return own, others, [device for path, device in rest if not _is_units(path)]


def _paths(dev: str, unit: "UnitLine") -> "list[str]":
    return [f"{dev}/nvidia{unit.minor}", *(f"{dev}/{_CAPS}/{_CAP}{minor}" for minor in unit.caps)]


def _without_file(path: str, caps: int, proc: str) -> "Device | None":
    """Return the device that a file of this name would have; None where the driver has none of that kind."""
    name = path.rpartition("/")[2]
    if not name.startswith(_CAP):
        return Device(NVIDIA_MAJOR, int(name[len("nvidia") :]))
    major = caps if caps >= 0 else _caps_major(proc)
    return Device(major, int(name[len(_CAP) :])) if major >= 0 else None


def _caps_major(proc: str) -> int:
    """Return the number that the kernel gave the driver's capability devices; -1 if it has none."""
    try:
        lines = read_start(f"{proc}/devices", 65536).split(b"\n")
    except OSError:
        return -1
    pairs = (line.split() for line in lines)
    return next((int(pair[0]) for pair in pairs if len(pair) == 2 and pair[1] == _CAPS.encode()), -1)  # noqa: PLR2004


def _nvidia_files(dev: str) -> "list[str]":
    found = [f"{dev}/{name}" for name in _names(dev) if name.startswith("nvidia") and name != _CAPS]
    return found + [f"{dev}/{_CAPS}/{name}" for name in _names(f"{dev}/{_CAPS}") if name.startswith(_CAP)]


def gpu_files(dev: str) -> "list[str]":
    """Return the device files of GPUs that there are now."""
    return [path for path in _nvidia_files(dev) if _is_units(path) and f"/{_CAPS}/" not in path and _device(path)]


def _names(directory: str) -> "list[str]":
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_units(path: str) -> bool:
    """Say whether a file is of one GPU or one instance; nvidiactl, nvidia-uvm and the like are of all."""
    name = path.rpartition("/")[2]
    if name.startswith(_CAP):
        minor = name[len(_CAP) :]
        return minor.isdigit() and int(minor) >= _FIRST_INSTANCE_CAP
    return name[len("nvidia") :].isdigit()


def _device(path: str) -> "Device | None":
    try:
        status = os.stat(path)
    except OSError:
        return None
    if status.st_mode & _S_IFMT != _S_IFCHR:
        return None
    return Device(os.major(status.st_rdev), os.minor(status.st_rdev), path)
