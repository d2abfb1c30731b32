"""Which Grid Engine job a hook runs for, by the shepherd above it. Lean.

The environment alone does not say so. The shepherd of Son of Grid Engine 8.1.9 reads the job's `environment` file in
pieces of 9999 bytes and takes each for a line, so what follows so much of a user's text is a variable of its own. qsub
sends its PATH along as SGE_O_PATH, which stands below JOB_ID: with such a PATH another job's JOB_ID comes last, and
that job's locks would be freed. Nobody but root chooses the shepherd's working directory, `active_jobs/JOB.TASK`.
"""

import os

from nodeagent.state.processes import ancestors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SHEPHERD = "sge_shepherd"
LONGEST_LINE = 9998
"""Bytes of a variable, name and value, that the shepherd reads as one line; measured."""
OUTSIDE_ARRAYS = "undefined"


def with_the_shepherds_word(environ: "Mapping[str, str]", proc: str = "/proc") -> "Mapping[str, str]":
    """Return the environment with JOB_ID, SGE_TASK_ID and SGE_JOB_SPOOL_DIR as the shepherd above us knows them.

    Without one above us, as where root tries a hook out by hand, it is returned as it is.

    Raises:
        OSError: the shepherd's working directory cannot be read.

    """
    shepherd = next((pid for pid, name in ancestors(proc, os.getpid()) if name == SHEPHERD), 0)
    if not shepherd:
        return environ
    directory = os.readlink(f"{proc}/{shepherd}/cwd")
    job, _, task = directory.rpartition("/")[2].partition(".")
    if task == "1" and environ.get("SGE_TASK_ID") != "1":  # a job outside arrays has the directory of a first task
        task = OUTSIDE_ARRAYS
    return {**environ, "JOB_ID": job, "SGE_TASK_ID": task, "SGE_JOB_SPOOL_DIR": directory}
