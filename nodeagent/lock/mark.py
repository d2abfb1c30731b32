"""By what a job's processes are known: the mark that its scheduler puts on each of them. Lean.

Grid Engine: the additional group of the run. Slurm: the cgroup of the job. Where the scheduler marks nothing, the
variables that it gave the process count: a user can forge these, but only against jobs of their own.
"""

from nodeagent.errors import UntrustedFile
from nodeagent.state.files import read_trusted_bytes
from nodeagent.state.processes import cgroups, group_ids, is_waiting, variable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeagent.lock.record import Owner


class Mark:
    """By what a job's processes are known: its owner record and, in Grid Engine, the run's additional group id.

    `admin_uids` are the users who may own Grid Engine's spool directories, as hook.conf has them.
    """

    __slots__ = ("_admin_uids", "_group", "owner", "uid")

    def __init__(self, owner: "Owner", admin_uids: str = "0") -> None:
        self.owner = owner
        self.uid = int(owner.uid) if owner.uid.isascii() and owner.uid.isdigit() else 0
        self._admin_uids = admin_uids
        self._group = -1

    @property
    def group(self) -> int:
        """The additional group id, 0 where it is not known; read when first asked for: most jobs leave nothing."""
        if self._group < 0:
            self._group = sge_group(self.owner.run, tuple(map(int, self._admin_uids.split())))
        return self._group

    def by_kernel(self, proc: str, pid: int) -> "bool | None":
        """Say whether the kernel knows that process as this job's; None where the scheduler has put no mark on it."""
        if self.owner.scheduler == "sge" and self.group:
            return self.group in group_ids(proc, pid)
        job = slurm_job(proc, pid) if self.owner.scheduler == "slurm" else ""
        return job == self.owner.job if job else None

    def is_on(self, proc: str, pid: int) -> bool:
        """Say whether that process, of the job's user, is proved to be of this job."""
        owner = self.owner
        known = self.by_kernel(proc, pid)
        if known is not None:
            return known
        if owner.scheduler == "sge":
            return bool(owner.run) and _variable(proc, pid, "SGE_JOB_SPOOL_DIR") == owner.run
        if owner.scheduler != "slurm" or _variable(proc, pid, "SLURM_JOB_ID") != owner.job:
            return False
        return not owner.cluster or _variable(proc, pid, "SLURM_CLUSTER_NAME") in ("", owner.cluster)


def _variable(proc: str, pid: int, name: str) -> str:
    """Return a variable; of a process in state D none, for its memory may be locked, and reading it would wait too."""
    return "" if is_waiting(proc, pid) else variable(proc, pid, name)


def slurm_job(proc: str, pid: int) -> str:
    """Return the job in whose cgroup a process is, by Slurm's names for these; empty if in none."""
    for _, path in cgroups(proc, pid):
        parts = path.split("/")
        named = [part[4:].partition(":")[0] for part in parts if part.startswith("job_")]
        if named and any(part.startswith("slurm") for part in parts):
            return named[0]
    return ""


def sge_group(directory: str, admin_uids: "tuple[int, ...]") -> int:
    """Return the additional group id of the run whose spool directory this is; 0 where it is not known."""
    for name, key in (("addgrpid", ""), ("config", "add_grp_id=")):
        try:
            data, _ = read_trusted_bytes(f"{directory}/{name}", admin_uids)
        except (UntrustedFile, OSError):
            continue
        # the last line of a name counts: a user's own text may stand before it, never behind it
        found = [line[len(key) :] for line in data.decode("ascii", "replace").split("\n") if line.startswith(key)]
        digits = [word.strip() for word in found if word.strip().isdigit()]
        if digits:
            return int(digits[-1])
    return 0
