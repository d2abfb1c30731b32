"""Where hooks and `exec` confine a job to its GPUs, and undo it; `nodeagent.isolation` is loaded only then. Lean."""

import os

from nodeagent.errors import LockBusy, NodeAgentError, NotIsolated
from nodeagent.state import events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nodeagent.hook.node import Node
    from nodeagent.lock.record import Owner
    from nodeagent.state.files import Directory
    from nodeagent.state.hook_conf import HookConf
    from nodeagent.state.verdict_file import UnitLine

_RECORDS = "isolation"  # nodeagent.isolation.record.ISOLATION, without importing it
_TIDY_PATIENCE = 0.1
"""Seconds for the flock: a job without GPUs needs it for nothing else, and runs beside such leftovers all its life."""


def begin(  # noqa: PLR0917
    node: "Node",
    conf: "HookConf",
    owner: "Owner",
    units: "Sequence[UnitLine]",
    process: "Callable[[], int]",
) -> bool:
    """Confine the process, and all that it will start, to these units' devices; False if `isolation` wants nothing.

    Raises:
        NodeAgentError: the job is not confined, and must not start.

    """
    setting = conf.settings.get("isolation", "none")  # an older release compiled hook.conf without it
    if setting == "none":
        return False
    from nodeagent.isolation.confine import Wish, confine

    try:
        _tidy(node)
        known = node.verdict.units if node.verdict is not None else ()
        wish = Wish(setting, conf.text("roots.dev"), conf.text("roots.proc"), known, units, process())
        return confine(node.state, owner, wish)
    except (NodeAgentError, OSError) as error:
        failure = NotIsolated("", str(error)) if isinstance(error, OSError) else error
        node.event("isolation_failed", owner, why=str(failure))
        raise failure from error


def _tidy(node: "Node") -> None:
    """Undo what is left of grants that are gone; if others are busy, that is for the next hook, or the agent."""
    from nodeagent.isolation.confine import leftovers, undo_gone

    try:
        if leftovers(node.state, node.store.owners()):
            with node.store.exclusive(_TIDY_PATIENCE):
                undo_gone(node.state, node.store.owners())
    except LockBusy:
        pass


def end(state: "Directory", owners: "Mapping[str, Owner]", scheduler: str, job: str, task: str) -> None:
    """Undo what `begin` did for this job; under the flock, before its locks are released.

    What cannot be undone keeps no lock from its release: it is undone later, by its record.
    """
    try:
        os.stat(_RECORDS, dir_fd=state.fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    from nodeagent.isolation.confine import undo_job

    try:
        undo_job(state, owners, scheduler, job, task)
    except (NodeAgentError, OSError) as error:
        events.append(state, "isolation_left", scheduler=scheduler, job=job, task=task, why=str(error))
