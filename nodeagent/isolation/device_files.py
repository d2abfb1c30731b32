"""Isolation by owner and mode of the device files: keeps users apart where no cgroup can be had. Lean.

Only where the driver leaves the files alone (ModifyDeviceFiles: 0): else each nvidia-smi makes them anew, open to all.
A granted file is its user's (0660, with group root for the agent, which has no right over others' files), any other
root's (0600). So root is never kept off, nor one job off another job of the same user.
"""

import errno
import os

from nodeagent.errors import NotIsolated
from nodeagent.isolation.method import Method
from nodeagent.state.boot import read_start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from nodeagent.isolation.devices import Device
    from nodeagent.isolation.record import Confinement

_NOBODY = 65534
_GRANTED, _CLOSED = 0o660, 0o600


class DeviceFiles(Method):
    """Owner and mode. `proc` is where the driver's own /proc tree is."""

    __slots__ = ("proc",)
    name = "device-files"
    refused = errno.EACCES
    node_wide = True

    def __init__(self, proc: str = "/proc") -> None:
        self.proc = proc

    def why_not(self, pid: int) -> str:
        """See Method."""
        if os.geteuid() != 0:
            return "only root changes who owns a device file"
        params = f"{self.proc}/driver/nvidia/params"
        try:
            lines = read_start(params, 16384).decode("utf-8", "replace").split("\n")
        except OSError as error:
            return f"{params}: {error.strerror}: whether the driver leaves the files alone is not known"
        if "ModifyDeviceFiles: 0" not in lines:
            return f"{params} does not say ModifyDeviceFiles: 0, so the driver would open the files again"
        return ""

    def plan(self, grant: "Confinement", pid: int, own: "Sequence[Device]") -> None:
        """See Method.

        Raises:
            NotIsolated: the user is root, or part of a GPU was granted: its file is others' too.

        """
        if grant.uid in ("", "0"):
            raise NotIsolated(self.name, "root is not kept off by the mode of a file")
        shared = [unit for unit in grant.units if not unit.startswith("GPU-") or "@" in unit]
        if shared:
            raise NotIsolated(self.name, f"{shared[0]} is part of a GPU, whose file has more than one user")
        if not all(device.path for device in own):
            raise NotIsolated(self.name, f"a GPU of {' '.join(grant.units)} has no file to be given")
        grant.files = tuple(device.path for device in own)

    def close(self, grant: "Confinement", others: "Sequence[Device]", spared: "Sequence[Device]") -> "list[Device]":
        """See Method. A file of the same user's is another grant's and stays as it is: users are all it knows."""
        uid = int(grant.uid)
        for path in grant.files:
            _set(path, uid, _GRANTED)
        closed = []
        for device in others:
            if not device.path:
                continue
            status = os.stat(device.path)
            granted = status.st_uid != 0 and (status.st_gid, status.st_mode & 0o777) == (0, _GRANTED)
            if granted and status.st_uid == uid:
                continue
            if not granted:
                _set(device.path, 0, _CLOSED)
            closed.append(device)
        return closed

    def become(self, grant: "Confinement") -> None:
        """See Method."""
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(int(grant.uid))

    def enter(self, grant: "Confinement", pid: int) -> None:
        """See Method: files are closed to whoever is not their user, whatever process asks."""

    def leave(self, grant: "Confinement") -> None:
        """See Method: there is nothing to leave."""

    def undo(self, grant: "Confinement", taken: "Collection[str]") -> bool:
        """See Method. What another user's grant has by now stays that user's."""
        for unit, path in zip(grant.units, grant.files):
            try:
                if unit not in taken and os.stat(path).st_uid == int(grant.uid):
                    _set(path, 0, _CLOSED)
            except FileNotFoundError:
                continue
        return True


def _set(path: str, uid: int, mode: int) -> None:
    """Give a file to a user. It is root's first, so the user before can change it no more.

    That user may have left an access list on it (setfacl), which would come to life again with the next one's mode.
    """
    os.chown(path, 0, 0)
    try:
        os.removexattr(path, "system.posix_acl_access")
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP):
            raise
    os.chmod(path, mode)
    if uid:
        os.chown(path, uid, 0)
