"""Giving a job's units back: what it holds and nothing else, as often as it is called. Lean."""

import os
import time

from nodeagent.errors import NodeAgentError, NoHookConf
from nodeagent.hook import isolation
from nodeagent.hook.cleanup import Left, end_processes
from nodeagent.hook.node import last_word
from nodeagent.lock.cleaning import open_attendant, wake
from nodeagent.lock.flock import FLOCK_TIMEOUT
from nodeagent.lock.mark import Mark
from nodeagent.lock.store import Store
from nodeagent.lock.unit import device
from nodeagent.state import events
from nodeagent.state.boot import boot_id, start_time
from nodeagent.state.hook_conf import read_hook_conf
from nodeagent.state.processes import device_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from nodeagent.lock.record import Owner
    from nodeagent.state.files import Directory
    from nodeagent.state.hook_conf import HookConf
    from nodeagent.state.verdict_file import VerdictFile

CHECK = "leftover-process"
_BOUND = 1.85
"""Seconds for all of `end`, of the two that an epilog has."""
_ENDING = 1.2
"""Seconds for the ending of processes, at most."""
_TO_FREE = 0.4
"""Seconds that are kept for what comes after it."""


def release(state: "Directory", scheduler: str, cluster: str, job: str, task: str = "") -> "dict[str, Owner]":
    """Free the units of this job by the lock's own record, never by the job's environment.

    Neither configuration nor verdict is asked: a lock is to go however broken the rest of the node is.

    Raises:
        LockBusy, OSError: nothing was freed, or not all; the agent's reconciler or a later call does.

    """
    store, run = Store(state), _Run(scheduler, cluster, job, task)
    with store.exclusive():
        store.sweep()
        isolation.end(state, store.owners(), scheduler, job, task)
        freed = store.release(run.holds)
    run.tell(state)
    _say(state, freed)
    return freed


def end(state: "Directory", scheduler: str, cluster: str, job: str, task: str = "") -> "dict[str, Owner]":
    """Give back the units of a job that has run: what it left running on them is ended, and the agent looks at them.

    Units become `cleaning` where an agent is there to free them, and free where none is: whatever fails in between,
    no lock stays for it.

    Raises:
        LockBusy, OSError: nothing was freed, or not all; the agent's reconciler or a later call does.

    """
    began = time.monotonic()
    store, run = Store(state), _Run(scheduler, cluster, job, task)
    with store.exclusive():
        store.sweep()
        held = store.owners()
        mine = {unit: owner for unit, owner in held.items() if run.holds(owner)}
        if not mine:
            isolation.end(state, held, scheduler, job, task)
    if not mine:
        run.tell(state)
        return {}
    cleanup = None
    try:
        cleanup = _Cleanup(state, mine, min(began + _BOUND - _TO_FREE, time.monotonic() + _ENDING))
    except NoHookConf:
        pass  # hooks were never configured here: the prolog has told, and nobody is there to clean
    except (NodeAgentError, OSError, ValueError) as error:
        events.append(state, "cleanup_failed", job=job, task=task, why=str(error))
    with store.exclusive(min(FLOCK_TIMEOUT, max(_TO_FREE, began + _BOUND - time.monotonic()))):
        held = store.owners()
        isolation.end(state, held, scheduler, job, task)
        # grants that were made to the job meanwhile (the agent completes those of typed GRES) end with it
        mine = {unit: owner for unit, owner in held.items() if run.holds(owner)}
        if cleanup is not None:
            cleanup.retire(store)
            cleanup.hand_over(store, mine)
        # what was not handed over, for whatever reason, goes
        freed = store.release(run.holds, mine)
    if cleanup is not None:
        cleanup.close()
        freed = {**cleanup.handed, **freed}
    run.tell(state)
    _say(state, freed)
    return freed


class _Run:
    """Which grants are of the run that this epilog ends: the job's, but for those of a later run of the same job.

    A job that was requeued may have its units again before the epilog of its first run comes. The scheduler's own word
    for the run does not tell that: Slurm has raised it before the epilog runs.
    """

    __slots__ = ("_began", "_boot", "_job", "_later")

    def __init__(self, scheduler: str, cluster: str, job: str, task: str) -> None:
        self._job = (scheduler, cluster, job, task)
        self._began = int(start_time(os.getpid()) or 0)
        self._boot = boot_id("/proc")
        self._later = False

    def holds(self, owner: "Owner") -> bool:
        """Say whether a grant is of this run: not one made by a process that began after this epilog."""
        if not owner.is_job(*self._job):
            return False
        if owner.scheduler == "local":  # the lock follows a process, which began after the one that waits for it
            return True
        later = owner.boot_id == self._boot and owner.pid_start.isdigit() and int(owner.pid_start) > self._began
        self._later = self._later or later
        return not later

    def tell(self, state: "Directory") -> None:
        """Record that a later run was met."""
        if self._later:
            scheduler, _, job, task = self._job
            why = "this epilog is an earlier run's; the job has its units again"
            events.append(state, "late_epilog", scheduler=scheduler, job=job, task=task, why=why)


def _say(state: "Directory", freed: "Mapping[str, Owner]") -> None:
    if freed:
        owner = next(iter(freed.values()))
        fields = {"scheduler": owner.scheduler, "job": owner.job, "task": owner.task, "user": owner.user}
        events.append(state, "release", units=" ".join(freed), **fields)


class _Cleanup:
    """What happens to a job's units between the job and their release. `handed` are those that are in cleaning now."""

    def __init__(self, state: "Directory", mine: "Mapping[str, Owner]", deadline: float) -> None:
        """End what the job left running; returns by `deadline` (monotonic seconds).

        Raises:
            NodeAgentError, OSError, ValueError: configuration or processes could not be read.

        """
        self.handed: dict[str, Owner] = {}
        self._state = state
        self._mine = mine
        self._stuck: dict[str, list[str]] = {}
        self._attendant = -1
        self._boot = ""
        self._dry_run = False
        conf = read_hook_conf(state)
        # an older release compiled hook.conf without these: then it is as it was with that one
        if conf.settings.get("cleanup.enabled") != "yes":
            return
        proc = conf.text("roots.proc")
        self._boot = boot_id(proc)
        verdict, fresh, _ = last_word(state, self._boot, conf.number("hooks.verdict_max_age"))
        if fresh:
            self._attendant = open_attendant(state)
        self._dry_run = conf.settings.get("policy.dry_run") == "yes"
        if verdict is not None and conf.settings.get("cleanup.kill") == "yes":
            self._end_processes(conf, verdict, proc, deadline)

    def _end_processes(self, conf: "HookConf", verdict: "VerdictFile", proc: str, deadline: float) -> None:
        dev = conf.text("roots.dev")
        minors = {line.unit: line.minor for line in verdict.units}
        minors.update({line.gpu: line.minor for line in verdict.units})
        # of a share and of an instance it is the whole GPU's file: ended are the job's own processes, nobody else's
        numbers = {unit: minors.get(unit, minors.get(o.gpu_of(unit), -1)) for unit, o in self._mine.items()}
        files = {unit: device_number(f"{dev}/nvidia{minor}") for unit, minor in numbers.items() if minor >= 0}
        owner = next(iter(self._mine.values()))
        mark = Mark(owner, conf.settings.get("scheduler.sge.admin_uids", "0"))
        left = end_processes(proc, mark, files.values(), deadline)
        for process, devices in left.stuck:
            for unit, number in files.items():
                if number in devices:
                    self._stuck.setdefault(unit, []).append(f"{process.pid}:{process.start}")
        self._tell(owner, left)

    def _tell(self, owner: "Owner", left: Left) -> None:
        about = {"scheduler": owner.scheduler, "job": owner.job, "task": owner.task, "user": owner.user}
        if left.ended or left.stuck:
            why = f"{left.ended} processes of the job were still on its GPUs and were ended"
            stuck = " ".join(str(process.pid) for process, _ in left.stuck)
            events.append(self._state, "leftover", why=why + (f"; not to be ended: {stuck}" if stuck else ""), **about)
        if left.foreign:
            pids = " ".join(map(str, sorted(left.foreign)))
            why = f"on the job's GPUs, but not proved to be the job's: {pids}"
            events.append(self._state, "foreign_process", why=why, **about)

    def retire(self, store: Store) -> None:
        """Under the flock: take out the units that a process which does not die still holds."""
        for unit, processes in list(self._stuck.items()) if not self._dry_run else ():
            owner = self._mine[unit]
            pids = ", ".join(word.partition(":")[0] for word in processes[:8])
            reason = f"process {pids} of job {owner.job} does not die and holds the GPU; needs reboot_node"
            facts = {"reason": reason, "check": CHECK, "action": "reboot_node", "by": "agent"}
            facts.update(since=str(int(time.time())), boot_id=self._boot, processes=" ".join(processes[:8]))
            try:
                store.retire(device(unit), facts.items())
            except OSError as error:  # then the agent is to see what becomes of it
                del self._stuck[unit]
                events.append(self._state, "cleanup_failed", job=owner.job, units=unit, why=str(error))

    def hand_over(self, store: Store, mine: "Mapping[str, Owner]") -> None:
        """Under the flock: where an agent listens, give it the units that it is to look at."""
        for unit, owner in mine.items() if self._attendant >= 0 else ():
            if unit in self._stuck:
                continue
            try:
                store.hand_over(unit, owner.cleaning())
            except OSError:
                continue  # a full disk: it is freed instead
            self.handed[unit] = owner

    def close(self) -> None:
        """Wake the agent if there is something for it, and let it go if not."""
        if self._attendant >= 0 and self.handed:
            wake(self._attendant)
        elif self._attendant >= 0:
            os.close(self._attendant)
