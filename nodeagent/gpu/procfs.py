"""What the kernel says of NVIDIA GPUs without NVML: /proc/driver/nvidia and sysfs. Lean: the probe process imports it.

Every reader takes the root of its tree (`/proc`, `/sys`, or a test's), and answers "nothing" (None, empty) where a file
is missing, unreadable or makes no sense: never an exception.
"""

from __future__ import annotations

import os

NVIDIA = "0x10de"
GPU_CLASSES = ("0x0300", "0x0302")
"""PCI class and subclass: VGA compatible controller, 3D controller (pci.ids)."""
MAX_BYTES = 65536
VERSION_PARTS = (2, 3)


class GpuIdentity:
    """A GPU as /proc/driver/nvidia knows it. `uuid` is empty where the driver could not tell it (`GPU-????????-…`)."""

    __slots__ = ("bus_id", "excluded", "minor", "model", "uuid", "vbios")

    def __init__(self, bus_id: str) -> None:
        self.bus_id = bus_id
        self.uuid = ""
        self.model = ""
        self.minor: int | None = None
        self.vbios = ""
        self.excluded = False


def normal_bus_id(text: str) -> str:
    """Return a PCI address as sysfs writes it, `0000:3b:00.0`, from any of NVML's and the driver's spellings.

    Accepted: 4 or 8 digits of domain, either case, the function left out (then 0). Empty if it is no address.
    """
    domain, _, rest = text.strip().partition(":")
    bus, _, rest = rest.partition(":")
    device, _, function = rest.partition(".")
    try:
        return f"{int(domain, 16):04x}:{int(bus, 16):02x}:{int(device, 16):02x}.{int(function or '0', 16):x}"
    except ValueError:
        return ""


def text_of(path: str) -> str:
    """Return what a file of the kernel's says, empty where it says nothing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a third of what `open` takes, dozens of times a sweep
    except OSError:
        return ""
    found = b""
    try:
        while len(found) < MAX_BYTES and (more := os.read(fd, MAX_BYTES)):
            found += more
        return found.decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def entries(path: str) -> list[str]:
    """Return the names in a directory, sorted; none where there is no such directory."""
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def parse_version(text: str) -> str:
    """Return the driver's version from the text of /proc/driver/nvidia/version, empty if there is none.

    The proprietary module, the open module and their architectures word the `NVRM version:` line differently; the
    version is its first word of two or three numbers (`367.56`, `550.163.01`).
    """
    for line in text.splitlines():
        if not line.startswith("NVRM version:"):
            continue
        for word in line.split():
            parts = word.split(".")
            if len(parts) in VERSION_PARTS and all(part.isdigit() for part in parts):
                return word
    return ""


def driver_version(proc: str, sys: str) -> str:
    """Return the version of the kernel module that is loaded, empty if none is."""
    return parse_version(text_of(f"{proc}/driver/nvidia/version")) or text_of(f"{sys}/module/nvidia/version").strip()


def gpu_bus_ids(proc: str) -> list[str]:
    """Return the bus ids of the GPUs that the driver has taken, ascending (NVML's own order). Touches no GPU."""
    return sorted(filter(None, (normal_bus_id(name) for name in entries(f"{proc}/driver/nvidia/gpus"))))


def parse_information(text: str, bus_id: str) -> GpuIdentity:
    """Return the identity that an `information` file holds; its lines are `Key:`, tabs and blanks, value."""
    values = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            values[key.strip().lower()] = value.strip()
    identity = GpuIdentity(normal_bus_id(values.get("bus location", "")) or bus_id)
    uuid = values.get("gpu uuid", "")
    identity.uuid = uuid if uuid.startswith("GPU-") and "?" not in uuid else ""
    identity.model = values.get("model", "")
    vbios = values.get("video bios", "")
    identity.vbios = "" if "?" in vbios else vbios
    minor = values.get("device minor", "")
    identity.minor = int(minor) if minor.isdigit() else None
    identity.excluded = values.get("gpu excluded", "").lower() == "yes"
    return identity


def gpu_identity(proc: str, bus_id: str) -> GpuIdentity | None:
    """Return what the driver knows of one GPU, None if it has no such GPU.

    Reading it can wake a sick GPU, and block on it: only the probe process may call this.
    """
    text = text_of(f"{proc}/driver/nvidia/gpus/{bus_id}/information")
    return parse_information(text, bus_id) if text else None


def mig_caps(proc: str, minor: int, gpu_instance: int, compute_instance: int) -> list[int]:
    """Return the minors of a MIG instance's two capability files, the GPU instance's first; empty if one is not known.

    The driver has for each an `access` file with a line `DeviceFileMinor: N`, meaning /dev/nvidia-caps/nvidia-capN.
    """
    home = f"{proc}/driver/nvidia/capabilities/gpu{minor}/mig/gi{gpu_instance}"
    found = []
    for path in (f"{home}/access", f"{home}/ci{compute_instance}/access"):
        pairs = (line.partition(":") for line in text_of(path).splitlines())
        values = [value.strip() for key, _, value in pairs if key.strip() == "DeviceFileMinor"]
        if not (values and values[0].isdigit()):
            return []
        found.append(int(values[0]))
    return found


class PciBus:
    """The PCI bus. What a device is (its vendor and class) is read once, as long as its entry is the same inode.

    A large node has hundreds of devices, and their files are most of what a sweep would have to open. The kernel gives
    a device that comes back, or another in its place, an entry of its own.
    """

    def __init__(self, sys: str) -> None:
        self._home = f"{sys}/bus/pci/devices"
        self._kinds: dict[tuple[str, int], bool] = {}

    def gpus(self) -> dict[str, str] | None:
        """Return the NVIDIA GPUs on the bus: bus id → the kernel driver that has it, empty for none.

        None if the bus cannot be read. Left out, because they are none of this node's: virtual functions of a GPU that
        is split for virtual machines, and GPUs handed to a virtual machine as a whole (driver vfio-pci).
        """
        try:
            with os.scandir(self._home) as listed:
                entries = sorted((entry.name, entry.inode()) for entry in listed)
        except OSError:
            return None
        known, self._kinds = self._kinds, {}
        found = {}
        for entry in entries:
            device = f"{self._home}/{entry[0]}"
            kind = known[entry] if entry in known else _is_nvidia_gpu(device)
            if kind is not None:
                self._kinds[entry] = kind
            driver = _bound_driver(device) if kind else ""
            if kind and driver != "vfio-pci" and not os.path.lexists(f"{device}/physfn"):
                found[entry[0]] = driver
        return found


def _is_nvidia_gpu(device: str) -> bool | None:
    """Whether a device is an NVIDIA GPU; None where it does not say."""
    vendor, kind = text_of(f"{device}/vendor").strip().lower(), text_of(f"{device}/class").strip().lower()
    return vendor == NVIDIA and kind.startswith(GPU_CLASSES) if vendor and kind else None


def _bound_driver(device: str) -> str:
    """The kernel driver that has a device; this can change at any time."""
    try:
        return os.path.basename(os.readlink(f"{device}/driver"))
    except OSError:
        return ""


def pci_slots(sys: str) -> dict[str, str]:
    """Return the machine's slots, as far as its firmware names them: `0000:3b:00` → the name on the chassis."""
    home = f"{sys}/bus/pci/slots"
    return {text_of(f"{home}/{name}/address").strip(): name for name in entries(home)}


def device_rule(proc: str) -> dict[str, int] | None:
    """Return how the driver keeps its device files, in the fields of host.DeviceRule; None where it does not say."""
    pairs = (line.partition(":") for line in text_of(f"{proc}/driver/nvidia/params").splitlines())
    values = {key.strip(): int(value) for key, _, value in pairs if value.strip().isdigit()}
    names = {"modify": "ModifyDeviceFiles", "mode": "DeviceFileMode", "uid": "DeviceFileUID", "gid": "DeviceFileGID"}
    if not set(names.values()) <= set(values):
        return None
    return {field: values[name] for field, name in names.items()}


def numa_node(sys: str, bus_id: str) -> int | None:
    """Return the NUMA node a PCI device is attached to, None where the firmware does not say (-1)."""
    text = text_of(f"{sys}/bus/pci/devices/{bus_id}/numa_node").strip()
    return int(text) if text.isdigit() else None
