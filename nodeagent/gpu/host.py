"""What was read of the node around its GPUs: files, ports, services, holders. Plain values, not judged."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceFile:
    """A file in /dev, links followed.

    `kind` is `c` for a character device, `-` for a plain file, `?` for anything else, empty where there is none;
    `mode` are its permission bits; `major` and `minor` are those of the device that it is.
    """

    kind: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    major: int = 0
    minor: int = 0


@dataclass(frozen=True)
class DeviceRule:
    """How the driver keeps its device files (/proc/driver/nvidia/params): by itself if it is to `modify` them."""

    modify: bool
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True)
class Port:
    """An InfiniBand port, as sysfs has it.

    `state` (4: active) and `physical` (5: link up) are the numbers of the InfiniBand specification, `rate` is in
    Gbit/s, `downed` counts how often the link went down since the counter was cleared.
    """

    device: str
    number: int
    state: int | None = None
    physical: int | None = None
    rate: float | None = None
    downed: int | None = None

    @property
    def name(self) -> str:
        """The port as people write it: mlx5_0/1."""
        return f"{self.device}/{self.number}"


@dataclass(frozen=True)
class Service:
    """A unit of systemd's, in systemd's own words: `load` (loaded, not-found, masked), `active`, `result`, `file`.

    `file` is the unit file's state (enabled, disabled, static), `result` how it ended last. `at` is when systemd said
    all that (monotonic seconds).
    """

    name: str
    load: str = ""
    active: str = ""
    result: str = ""
    file: str = ""
    at: float = 0.0


@dataclass(frozen=True)
class Space:
    """What is left in the agent's state directory: bytes, files (None: without a limit), and whether it may write."""

    free: int
    files: int | None = None
    writable: bool = True


@dataclass(frozen=True)
class Holder:
    """Whoever holds a GPU, or a part of it, by a lock; `uid` is -1 where the lock does not say."""

    scheduler: str
    job: str = ""
    task: str = ""
    user: str = ""
    uid: int = -1
