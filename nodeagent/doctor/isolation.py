"""Whether jobs are kept off GPUs that are not theirs: by Slurm, or by us, and what is missing where they are not."""

from __future__ import annotations

import os
from collections.abc import Iterator

from nodeagent.doctor.line import FAIL, OK, WARN, Line, Look
from nodeagent.errors import CommandFailed
from nodeagent.isolation.cgroup import directory_of
from nodeagent.isolation.cgroup_v2 import CgroupV2, delegated
from nodeagent.isolation.confine import AUTO, AUTOMATIC, NONE
from nodeagent.isolation.devices import gpu_files

_CONSTRAIN = "set ConstrainDevices=yes in cgroup.conf and TaskPlugin=task/cgroup in slurm.conf, then restart slurmd"
_LEAVE_FILES = (
    "put `options nvidia NVreg_ModifyDeviceFiles=0` into /etc/modprobe.d/nvidia.conf and load the driver again"
)


def slurm_constrains(look: Look) -> Iterator[Line]:
    """Slurm isolates by itself or not at all: we do nothing twice."""
    if look.config.scheduler.kind != "slurm":
        return
    name, setting = "slurm-constrains-devices", look.config.scheduler.slurm.constrains_devices
    try:
        constrains = look.constrains_devices() if setting == "auto" else setting == "yes"
    except CommandFailed as error:
        yield Line(name, WARN, f"not known: {error}", "make `scontrol show config` work on this node")
        return
    if constrains:
        yield Line(name, OK, "Slurm keeps each job off the other GPUs")
    else:
        yield Line(name, WARN, "ConstrainDevices is not on: every job can open every GPU", _CONSTRAIN)


def method(look: Look) -> Iterator[Line]:
    """Which way `isolation` leads to, and why the others cannot be had."""
    if look.config.scheduler.kind == "slurm":
        return
    name, setting = "isolation", look.config.isolation
    if look.config.scheduler.kind == "sge" and not look.root:
        yield Line(name, WARN, "not known: only root can tell what the exec daemon's cgroup allows", "run this as root")
        return
    why = {word: one.why_not(look.starter) for word, one in look.methods.items()}
    if setting == NONE:
        yield Line(name, WARN, "none: every job can open every GPU", "set isolation: auto, then reload the agent")
        return
    candidates = AUTOMATIC if setting == AUTO else (setting,)
    taken = next((word for word in candidates if not why[word]), "")
    reasons = "; ".join(f"{word}: {why[word]}" for word in candidates if why[word])
    if taken:
        others = f" ({reasons})" if reasons else ""
        yield Line(name, OK, f"{setting}: jobs of {look.starter_name} are confined by {taken}{others}")
    elif setting == AUTO:
        remedy = "remove what stands in the way of one, or set isolation: device-files if its condition is met"
        yield Line(
            name, WARN, f"auto: none for jobs of {look.starter_name}, which can open every GPU: {reasons}", remedy
        )
    else:
        yield Line(
            name, FAIL, f"jobs of {look.starter_name} cannot start: {reasons}", "set isolation: auto, or see below"
        )


def driver_leaves_files(look: Look) -> Iterator[Line]:
    """device-files holds only where the driver does not make the files anew."""
    if look.config.isolation != "device-files" or look.config.scheduler.kind == "slurm":
        return
    why = look.methods["device-files"].why_not(look.starter)
    yield Line("device-files", FAIL, why, _LEAVE_FILES) if why else Line("device-files", OK, "ModifyDeviceFiles: 0")


def files_left_closed(look: Look) -> Iterator[Line]:
    """What device-files closed stays closed when another method follows: then a job cannot open its own GPU either."""
    if look.config.isolation == "device-files" or look.config.scheduler.kind == "slurm":
        return
    closed = [path for path in gpu_files(look.config.roots.dev) if not os.stat(path).st_mode & 0o066]
    if closed:
        files = " ".join(closed)
        yield Line("device-files-left", WARN, f"open to root alone: {files}", f"chmod 0666 {files}")


def delegation(look: Look) -> Iterator[Line]:
    """Below systemd a cgroup of version 2 is ours to divide only where its unit says Delegate=yes."""
    setting, v2 = look.config.isolation, look.methods["cgroup-v2"]
    wanted = setting == "cgroup-v2" or (setting == AUTO and bool(look.methods["cgroup-v1"].why_not(look.starter)))
    if look.config.scheduler.kind == "slurm" or not wanted or not isinstance(v2, CgroupV2) or not v2.under_systemd():
        return
    where = directory_of(v2.proc, look.starter, "")
    if not where:
        return
    if delegated(where):
        yield Line("delegate", OK, f"{where} is delegated to {look.starter_name}")
        return
    unit = next((part for part in reversed(where.split("/")) if part.endswith((".service", ".scope"))), "its unit")
    remedy = f"systemctl edit {unit}: [Service] Delegate=yes; then restart it"
    if look.config.scheduler.kind == "local":
        remedy = "systemd-run --scope -p Delegate=yes gpu-nodeagent exec …"
    yield Line("delegate", FAIL if setting == "cgroup-v2" else WARN, f"{where} is not delegated", remedy)
