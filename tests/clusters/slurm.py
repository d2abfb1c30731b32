"""A real Slurm on loopback: munge, one controller and a few node daemons of its own, each node with GPU device files."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.clusters import process
from tests.clusters.process import ClusterError, CommandFailed, Daemon, Nursery, wait_for

NVIDIA_MAJOR = 195
CGROUP_V1 = Path("/sys/fs/cgroup")
FINISHED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"})
"""The states a job does not leave any more."""

HOOK_KEYS = {
    "prolog": "Prolog",
    "epilog": "Epilog",
    "task_prolog": "TaskProlog",
    "task_epilog": "TaskEpilog",
    "prolog_slurmctld": "PrologSlurmctld",
    "epilog_slurmctld": "EpilogSlurmctld",
    "health_check_program": "HealthCheckProgram",
}
"""The hooks that `SlurmCluster` and `reconfigure` take, and their names in slurm.conf."""

Hook = os.PathLike[str] | str | None if False else object  # replaced below; keeps Python 3.9 from evaluating a union
