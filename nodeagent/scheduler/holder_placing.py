"""Getting holders onto their GPUs: Slurm chooses which GPU a job gets, so as many are asked for as it takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from nodeagent.errors import CommandFailed
from nodeagent.scheduler.slurm_holder import CONFIGURING, HolderPort, plan


@dataclass(frozen=True)
class Outcome:
    """How holders stand: `kept` index → job, and the wanted indices that are `missing`.

    `cancelled` are the jobs that were wrong or not wanted any more. `tried` is the index that could not be had although
    no lock is on it, and `obstacle` what keeps every job from it (empty: nothing that is known). `settled`: nothing is
    missing, and all are suspended.
    """

    kept: Mapping[int, str]
    missing: Collection[int]
    cancelled: Collection[str]
    tried: int | None = None
    obstacle: str = ""
    settled: bool = False


def hold(port: HolderPort, wanted: Mapping[int, str], unlocked: Collection[int]) -> Outcome:
    """Have each wanted index (→ its unit) that no job has in the hands of a suspended holder; end all other holders.

    Slurm mostly gives the lowest free index, but cores and links have a say. So one job takes what is `unlocked` below
    the wanted one; after that one GPU is asked for at a time, and kept till the wanted one has come. What was taken
    besides goes back at once. A holder is suspended only when Slurm has said which GPU it has.

    Raises:
        CommandFailed: Slurm does not answer; the next call finds what this one has left behind.

    """
    tried: int | None = None
    for turn in range(2 * len(unlocked) + 4):
        found = port.found()
        todo = plan(found, wanted, port.partition)
        for job in todo.suspend:
            port.suspend(job)
        ready = [index for index in todo.missing if index in unlocked]
        if not ready:
            tried = None
            break
        tried = ready[0]
        wrong = {one.job: one.indices for one in found if one.job in todo.cancel}
        below = sum(index < tried and index not in todo.kept for index in unlocked)
        in_the_way = [job for job, indices in wrong.items() if tried in indices]
        if in_the_way:
            for job in in_the_way:
                port.cancel(job)
        elif not _placed(port, wanted[tried], below if turn == 0 and not wrong else 0):
            break
    for job in todo.cancel:
        port.cancel(job)
    settled = not (todo.missing or todo.cancel or any(one.state == CONFIGURING for one in found))
    return Outcome(todo.kept, todo.missing, todo.cancel, tried, port.obstacle() if tried is not None else "", settled)


def _placed(port: HolderPort, unit: str, below: int) -> bool:
    """Ask for what is below a GPU, or for one more; return whether there is any sense in going on."""
    for patient in (False, True):
        try:
            port.place(unit, below or 1, patient)
        except CommandFailed:
            continue
        return True
    return below > 0  # fewer may be free than was thought: one at a time, then
