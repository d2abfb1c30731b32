"""The environment that a granted job gets, as (name, value) pairs for whatever form its scheduler takes. Lean."""

from nodeagent.lock.unit import device, is_share
from nodeagent.state.boot import read_start
from nodeagent.state.hook_conf import HookConf
from nodeagent.state.verdict_file import UnitLine, VerdictFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

NO_DEVICES = "NoDevFiles"  # the word that Slurm itself uses for "none": no GPU has this name, so CUDA sees none
BIND_VARIABLES = ("APPTAINER_BINDPATH", "SINGULARITY_BINDPATH")
_TWINS = ("APPTAINERENV_", "SINGULARITYENV_")


def visible_devices(conf: HookConf, units: "Sequence[UnitLine]", constrained: bool = False) -> str:
    """Return CUDA_VISIBLE_DEVICES for these units: NVML indices (CUDA's own under PCI_BUS_ID order) or UUIDs.

    Where the job is `constrained` to its devices CUDA counts only those, so `auto` gives UUIDs, which mean the same
    everywhere. MIG instances have no index, and neither has a GPU whose index NVML did not give: then UUIDs for all. A
    share is named as its GPU is. The MPS server counts the GPUs that it was started with, so with it UUIDs too.
    """
    if not units:
        return NO_DEVICES
    form = conf.text("hooks.cuda_visible_devices")
    as_uuid = form == "uuid" or (form == "auto" and constrained) or _mps_shares(conf, units)
    if as_uuid or any(unit.index < 0 or not unit.unit.startswith("GPU-") for unit in units):
        return ",".join(device(unit.unit) for unit in units)
    return ",".join(str(unit.index) for unit in units)


def with_twins(name: str, value: str) -> "Iterator[tuple[str, str]]":
    """Yield the variable and its forms that reach the inside of a container."""
    yield name, value
    for prefix in _TWINS:
        yield prefix + name, value


def gpu_environment(visible: str) -> "Iterator[tuple[str, str]]":
    """Yield what selects GPUs."""
    yield from with_twins("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    yield from with_twins("CUDA_VISIBLE_DEVICES", visible)


def _mps_shares(conf: HookConf, units: "Sequence[UnitLine]") -> bool:
    # .get: an older release compiled hook.conf without it
    return conf.settings.get("sharing.mps.enabled") == "yes" and any(is_share(unit.unit) for unit in units)


def share_environment(conf: HookConf, units: "Sequence[UnitLine]") -> "Iterator[tuple[str, str]]":
    """Yield what tells a job on shares of the MPS server and of its part of the GPUs; nothing without MPS.

    The percentage is one for the whole job: that of its smallest share. Memory is limited by device, in MiB, counted as
    the job counts its devices.
    """
    if not _mps_shares(conf, units):
        return
    yield from with_twins("CUDA_MPS_PIPE_DIRECTORY", conf.text("sharing.mps.pipe_directory"))
    if conf.text("sharing.mps.threads") == "share":
        least = min(100 // unit.slots for unit in units)
        yield from with_twins("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", str(max(1, least)))
    if conf.text("sharing.mps.memory") == "share":
        limits = [
            f"{at}={unit.memory // unit.slots >> 20}M"
            for at, unit in enumerate(units)
            if is_share(unit.unit) and unit.memory
        ]
        if limits:
            yield from with_twins("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", ",".join(limits))


def driver_binds(conf: HookConf, verdict: "VerdictFile | None") -> str:
    """Return the bind list of the driver set, or nothing when the set was checked for another driver than runs now.

    The running version is read from /sys/module, which asks no GPU; the set itself was verified by the agent, because
    a bind source that is missing kills every container, and a dead file server must not hang a prolog.
    """
    if verdict is None or not verdict.binds:
        return ""
    try:
        running = read_start(f"{conf.text('roots.sys')}/module/nvidia/version").decode().strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return verdict.binds if running == verdict.driver else ""


def bind_environment(binds: str, environment: "Mapping[str, str]") -> "Iterator[tuple[str, str]]":
    """Yield both bind variables with one value: the user's own entries first, then ours that are not there yet.

    A user's value that holds control characters cannot be passed on in one line and is left alone, unchanged.
    """
    if not binds:
        return
    entries: list[str] = []
    for name in BIND_VARIABLES:
        own = environment.get(name, "")
        if not own.isprintable():
            return
        entries += [entry for entry in own.split(",") if entry and entry not in entries]
    taken = {(entry.split(":") + [entry])[1] for entry in entries}
    entries += [entry for entry in binds.split(",") if entry.split(":")[1] not in taken]
    for name in BIND_VARIABLES:
        yield name, ",".join(entries)
