"""All checks of `gpu-nodeagent doctor`, in the order of their lines: one line each."""

from __future__ import annotations

from nodeagent.doctor import holder, isolation, sge_rights, slurm_rights
from nodeagent.doctor.line import Check, Line, Look

CHECKS: tuple[Check, ...] = (
    isolation.slurm_constrains,
    isolation.method,
    isolation.driver_leaves_files,
    isolation.files_left_closed,
    isolation.delegation,
    slurm_rights.rights,
    sge_rights.rights,
    sge_rights.load_sensor,
    sge_rights.admin_user,
    holder.holder,
)


def examine(look: Look) -> list[Line]:
    """Return what all checks find."""
    return [line for check in CHECKS for line in check(look)]
