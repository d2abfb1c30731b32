"""Slurm of another release than this machine's: a tree's /usr laid over ours, in a mount namespace of its own.

Daemons, jobs and hooks run in there. They find that release's programs with its C library, and below them all that
this machine has itself, Python among it; every other directory is this machine's own. Commands from outside go through
scripts of their names (`bin_dir`), so that an agent need not know.
"""

from __future__ import annotations

from pathlib import Path

from tests.clusters import process
from tests.clusters.process import ClusterError, Daemon, Nursery, wait_for
from tests.trees import Recipe

TRIXIE = Recipe(
    "trixie",
    ("slurmctld", "slurmd", "slurm-client", "munge"),
    configured=False,
    left_out=("./etc", "./var", "./usr/share"),
)
"""Slurm 24.11. What a package's scripts would link is linked already by this machine's own Slurm."""
RELEASES = {"22.05": None, "24.11": TRIXIE}
"""The releases that tests run on; None is this machine's own, as Debian 12 has it."""

_PROGRAMS = ("salloc", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun", "slurmd")
_INSIDE = """\
set -e
mount -t overlay overlay -o lowerdir="$1":/usr /usr
for plugins in "$1"/lib/*/slurm-wlm; do  # not beside those of the other release
  mount --bind "$plugins" "/usr${plugins#"$1"}"
done
touch "$2"
exec sleep 1000000
"""


class Release:
    """The namespace of one cluster; `usr` is a tree's, `directory` gets the scripts."""

    def __init__(self, nursery: Nursery, directory: Path, usr: Path) -> None:
        self.bin_dir = directory / "bin"
        self._nursery = nursery
        self._up = directory / "release-up"
        self._usr = usr
        self._holder: Daemon | None = None

    def start(self, timeout: float = 10) -> None:
        """Make it; raises ClusterError where this machine gives no namespace or no overlay, with the kernel's words."""
        self._up.unlink(missing_ok=True)
        words = [process.program("unshare"), "--mount", "/bin/sh", "-c", _INSIDE, "sh", str(self._usr), str(self._up)]
        holder = self._holder = self._nursery.start("release", words, {"PATH": process.SYSTEM_PATH})
        wait_for(lambda: self._up.exists() or holder.status() is not None, timeout, f"the namespace of {self._usr}")
        if not self._up.exists():
            raise ClusterError(f"no namespace for {self._usr}: {process.tail(holder.log)}")
        self.bin_dir.mkdir(exist_ok=True)
        for name in _PROGRAMS:
            script = self.bin_dir / name
            script.write_text(f'#!/bin/sh\nexec {" ".join(self.enter())} {process.program(name)} "$@"\n')
            script.chmod(0o755)

    def enter(self) -> list[str]:
        """The words before a command that run it there, as the process that they are given to, in `/`."""
        if self._holder is None:
            raise ClusterError("the cluster is stopped")
        return [process.program("nsenter"), "--target", str(self._holder.pid), "--mount", "--"]
