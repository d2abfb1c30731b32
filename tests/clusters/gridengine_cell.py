"""A Grid Engine cell of a test's own: SGE_ROOT, configuration and database in one directory.

Debian's binaries find all of that through the environment, so the machine's own cell is neither read nor written.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

BINARIES = Path("/usr/lib/gridengine")
SHARED = Path("/usr/share/gridengine")
CELL = "default"
ARCHITECTURE = f"lx-{'amd64' if platform.machine() == 'x86_64' else platform.machine()}"

COMPLEXES = (
    "gpu gpu INT <= YES YES 0 0",
    "gpu_faulty gpu_faulty INT >= YES NO 0 0",
    "gpu_reason gpu_reason STRING == YES NO NONE 0",
)
"""The complexes of a cluster by default, as `qconf -sc` writes them."""

PARALLEL_ENVIRONMENT = """\
pe_name            smp
slots              999
user_lists         NONE
xuser_lists        NONE
start_proc_args    NONE
stop_proc_args     NONE
allocation_rule    $pe_slots
control_slaves     TRUE
job_is_first_task  TRUE
urgency_slots      min
accounting_summary FALSE
qsort_args         NONE
"""

ACROSS_HOSTS = {"pe_name": "mpi", "allocation_rule": "$round_robin", "job_is_first_task": "FALSE"}
"""What is different in the parallel environment whose jobs are on several hosts."""

GLOBAL_SETTINGS = {
    "load_report_time": "00:00:02",
    "reporting_params": "accounting=true reporting=false flush_time=00:00:01 joblog=false"
    " sharelog=00:00:00 accounting_flush_time=00:00:00",
}
SCHEDULER_SETTINGS = {
    "schedule_interval": "0:0:1",
    "flush_submit_sec": "1",
    "flush_finish_sec": "1",
    "job_load_adjustments": "NONE",
    "load_adjustment_decay_time": "0:0:0",
}

GROUPS_FROM = 20000
GROUPS_EACH = 100
"""Each cluster marks its jobs with additional group ids of its own: the exec daemon kills by them."""


def replace_settings(text: str, settings: Mapping[str, str]) -> str:
    """`text` in Grid Engine's form `name value` with the named values replaced or added.

    Continued lines come out joined, comments are dropped.
    """
    joined = re.sub(r"\\\n\s*", "", text)
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    names = [line.split(None, 1)[0] for line in lines]
    kept = [f"{name} {settings[name]}" if name in settings else line for name, line in zip(names, lines)]
    added = [f"{name} {value}" for name, value in settings.items() if name not in names]
    return "\n".join(kept + added) + "\n"


def group_range(port: int, at: int = 0, of: int = 1) -> str:
    """The additional group ids of the `at`th of so many hosts of the cluster with that port."""
    first, each = GROUPS_FROM + port % 400 * GROUPS_EACH, GROUPS_EACH // of
    return f"{first + at * each}-{first + (at + 1) * each - 1}"


def host_settings(port: int, at: int, of: int) -> str:
    """The local configuration of one of several hosts: they share the kernel, and so their jobs' group ids."""
    return f"gid_range {group_range(port, at, of)}\n"


def make_files(directory: Path, hosts: Sequence[str], port: int, load_sensor: str) -> None:
    """Make SGE_ROOT and the spool directories below `directory`, and `configuration` for the database."""
    root = directory / "root"
    common = root / CELL / "common"
    for path in (common, directory / "qmaster" / "job_scripts", directory / "execd", directory / "spooldb"):
        path.mkdir(parents=True, exist_ok=True)
    (directory / "tmp").mkdir()
    (directory / "tmp").chmod(0o1777)
    for name in ("bin", "lib", "utilbin"):
        (root / name).mkdir()
        (root / name / ARCHITECTURE).symlink_to(BINARIES)
    (root / "util").symlink_to(SHARED / "util")
    bootstrap = {
        "admin_user": "root",
        "spooling_params": f"{directory}/spooldb",
        "qmaster_spool_dir": f"{directory}/qmaster",
        "binary_path": str(BINARIES),
    }
    (common / "bootstrap").write_text(replace_settings((SHARED / "default-bootstrap").read_text(), bootstrap))
    (common / "act_qmaster").write_text(f"{hosts[0]}\n")
    if len(hosts) == 1:  # its address is loopback's
        (common / "host_aliases").write_text(f"{hosts[0]} localhost\n")
    settings = {
        **GLOBAL_SETTINGS,
        "execd_spool_dir": f"{directory}/execd",
        "load_sensor": load_sensor,
        "gid_range": group_range(port),
    }
    text = (SHARED / "default-configuration").read_text()
    (directory / "configuration").write_text(replace_settings(text, settings))


def database_commands(directory: Path) -> list[list[str]]:
    """The commands that make the master's database from those files, to be run as root in this order."""
    resources = SHARED / "util" / "resources"
    return [
        ["spoolinit", "berkeleydb", "libspoolb", f"{directory}/spooldb", "init"],
        ["spooldefaults", "configuration", f"{directory}/configuration"],
        ["spooldefaults", "complexes", f"{resources}/centry"],
        ["spooldefaults", "usersets", f"{resources}/usersets"],
        ["spooldefaults", "managers", "root"],
    ]
