"""All checks of `gpu-nodeagent doctor`, in the order of their lines: one line each."""

from __future__ import annotations

from nodeagent.doctor import holder, isolation
from nodeagent.doctor.line import Check, Line, Look

CHECKS: tuple[Check, ...] = (
    isolation.slurm_constrains,
    isolation.method,
    isolation.driver_leaves_files,
    isolation.files_left_closed,
    isolation.delegation,
    holder.holder,
)


def examine(look: Look) -> list[Line]:
    """Return what all checks find."""
    return [line for check in CHECKS for line in check(look)]
