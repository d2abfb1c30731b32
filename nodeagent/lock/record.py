"""The owner of a lock, as written in `locks/<unit>/owner`. Lean."""

import os

from nodeagent.errors import UnknownFormat
from nodeagent.lock.unit import device, is_unit
from nodeagent.state.files import decode_pairs, encode_pairs, short

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

HOLD = "hold"
MAINTENANCE = "maintenance"
CLEANING = "cleaning"
UNREADABLE = "unreadable"
_TEXTS = ("scheduler", "cluster", "node", "job", "task", "grant", "run", "user", "uid", "pid", "pid_start", "boot_id")


class Owner:
    """Who holds a grant of one or more units.

    `scheduler` is slurm, sge, local, or one of the words that are not a job: hold, maintenance, cleaning, unreadable.
    `grant` is random, one a grant: the identity of what is released. `task` is empty outside arrays. `run` is the
    scheduler's word for this run of the job: Slurm's restart count, Grid Engine's spool directory of it. `pid` with
    `pid_start` (clock ticks since boot, field 22 of /proc/PID/stat) is the process whose life the grant follows
    (`exec`), or the hook that wrote it. `since` is wall time in whole seconds, for people. `units` are all units of
    the grant, so that one record tells what to roll back. `gpus` are the GPUs that these units are, or are of, in the
    same order: an instance may vanish before its lock does. Empty in a lock of an older release.
    """

    __slots__ = (*_TEXTS, "gpus", "since", "units")

    def __init__(
        self,
        scheduler: str,
        job: str = "",
        task: str = "",
        cluster: str = "",
        node: str = "",
        grant: str = "",
        run: str = "",
        user: str = "",
        uid: str = "",
        pid: str = "",
        pid_start: str = "",
        boot_id: str = "",
        since: int = 0,
        units: "tuple[str, ...]" = (),
        gpus: "tuple[str, ...]" = (),
    ) -> None:
        self.scheduler = scheduler
        self.cluster = cluster
        self.node = node
        self.job = job
        self.task = task
        self.grant = grant
        self.run = run
        self.user = user
        self.uid = uid
        self.pid = pid
        self.pid_start = pid_start
        self.boot_id = boot_id
        self.since = since
        self.units = units
        self.gpus = gpus

    def __str__(self) -> str:
        name = f"{self.job}.{self.task}" if self.task else self.job
        return f"{self.scheduler} {name or self.grant}" + (f" ({self.user})" if self.user else "")

    def is_job(self, scheduler: str, cluster: str, job: str, task: str) -> bool:
        """Say whether this grant belongs to that job; a cluster that is not known on one side is not compared.

        The node is not compared: a state directory is one node's, whatever name that had when the lock was made.
        """
        return (self.scheduler, self.job, self.task) == (scheduler, job, task) and (
            not cluster or self.cluster in ("", cluster)
        )

    def gpu_of(self, unit: str) -> str:
        """Return the GPU that a unit of the grant is, or is of; an instance's own name where nobody wrote its GPU."""
        return dict(zip(self.units, self.gpus)).get(unit) or device(unit)

    def with_units(self, gpus: "Mapping[str, str]") -> "Owner":
        """Return the same owner of other units: unit → the GPU that it is, or is of."""
        texts = {key: getattr(self, key) for key in _TEXTS}
        return Owner(since=self.since, units=tuple(gpus), gpus=tuple(gpus.values()), **texts)

    def encode(self) -> str:
        """Return the text of the `owner` file."""
        pairs = [(key, short(str(getattr(self, key)))) for key in _TEXTS]
        lists = [("units", " ".join(self.units)), ("gpus", " ".join(self.gpus))]
        return encode_pairs([*pairs, ("since", str(self.since)), *lists])


def decode_owner(what: str, text: str) -> Owner:
    """Read an `owner` file.

    Raises:
        UnknownFormat: another release wrote it, or it is damaged: such a unit is held, never free.

    """
    pairs = decode_pairs(what, text)
    try:
        owner = Owner(
            since=int(pairs["since"]),
            units=tuple(pairs["units"].split()),
            gpus=tuple(pairs.get("gpus", "").split()),
            **{key: pairs[key] for key in _TEXTS},
        )
    except (KeyError, ValueError) as error:
        raise UnknownFormat(what, f"no readable {error}") from error
    if not owner.scheduler or not owner.grant or not all(map(is_unit, owner.units)):
        raise UnknownFormat(what, "an owner without scheduler, grant or units")
    return owner


def new_grant() -> str:
    """Return a name for a grant that no other grant has: 64 random bits."""
    return os.urandom(8).hex()
