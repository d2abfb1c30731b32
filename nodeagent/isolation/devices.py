"""Which NVIDIA devices a grant may open and which not: by file name for us, by number for the kernel. Lean."""

import os

from nodeagent.errors import NotIsolated

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
    caps = unit.caps
    if unit.minor < 0:
        raise NotIsolated("", f"the device file of {unit.unit} is not known")
    if unit.unit.startswith("MIG-") and not caps:
        raise NotIsolated("", f"the capability devices of {unit.unit} are not known")
    return [f"{dev}/nvidia{unit.minor}", *(f"{dev}/{_CAPS}/{_CAP}{minor}" for minor in caps)]


def split(
    dev: str, known: "Iterable[UnitLine]", granted: "Iterable[UnitLine]"
) -> "tuple[list[Device], list[Device], list[Device]]":
    """Return the devices of a grant, those of all other units of the node, and those that everybody needs.

    A GPU that the agent knows and that has no file now (something could make one) counts by NVIDIA's own number; a
    file that no known unit has counts as somebody else's.

    Raises:
        NotIsolated: the granted units' own files are not known.

    """
    own_files = {path for unit in granted for path in files_of(dev, unit)}
    own: list[Device] = []
    others: list[Device] = []
    common: list[Device] = []
    for path in _nvidia_files(dev):
        device = _device(path)
        if device is not None:
            (own if path in own_files else others if _is_units(path) else common).append(device)
    there = {device.path for device in (*own, *others)}
    missing = {unit.minor for unit in known if unit.minor >= 0 and f"{dev}/nvidia{unit.minor}" not in there}
    others += [Device(NVIDIA_MAJOR, minor) for minor in sorted(missing) if f"{dev}/nvidia{minor}" not in own_files]
    spared = {device.number for device in own}
    return own, [device for device in others if device.number not in spared], common


def _nvidia_files(dev: str) -> "list[str]":
    found = [f"{dev}/{name}" for name in _names(dev) if name.startswith("nvidia") and name != _CAPS]
    return found + [f"{dev}/{_CAPS}/{name}" for name in _names(f"{dev}/{_CAPS}") if name.startswith(_CAP)]


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
