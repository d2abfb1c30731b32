"""What a job left running on its GPUs: found by the kernel's word, ended if it is proved to be this job's. Lean.

A process is the job's when it runs as the job's user, never root, and bears the scheduler's mark (lock/mark.py).
"""

import os
import time

from nodeagent.state.processes import Process, all_pids, find, open_devices, owner_uid, parent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from nodeagent.lock.mark import Mark

TERM_WAIT = 0.5
"""Seconds from TERM to KILL; a program that saves its state at its job's end had the scheduler's TERM for that."""
_POLL = 0.01
_TERM, _KILL = 15, 9
_ESRCH = 3


class Left:
    """What the ending of processes came to.

    `stuck` are those that did not die, with the devices they hold; `ended` counts the others; `foreign` are processes
    of the job's user that hold a device of the job and are not proved to be the job's: they were left alone.
    """

    __slots__ = ("ended", "foreign", "stuck")

    def __init__(self) -> None:
        self.stuck: list[tuple[Process, set[int]]] = []
        self.ended = 0
        self.foreign: set[int] = set()


class _Told:
    """A process of the job, the devices that it was seen to hold, and the last signal that it got."""

    __slots__ = ("devices", "process", "signal")

    def __init__(self, process: Process) -> None:
        self.process = process
        self.devices: set[int] = set()
        self.signal = 0


class _Ending:
    """One pass after the other over the processes that hold the devices, until none is left or the time is over."""

    __slots__ = ("deadline", "devices", "left", "mark", "proc", "told")

    def __init__(self, proc: str, mark: "Mark", devices: "set[int]", deadline: float) -> None:
        self.proc = proc
        self.mark = mark
        self.devices = devices
        self.deadline = deadline
        self.told: dict[int, _Told] = {}
        self.left = Left()

    def look(self) -> None:
        """Find the job's processes that hold a device now: the first ones, and what these have started since."""
        for pid in all_pids(self.proc):
            # a user may have any number of processes and files: the time is kept, whatever is there to be read
            if time.monotonic() > self.deadline:
                return
            if owner_uid(self.proc, pid) != self.mark.uid:
                continue
            process = find(self.proc, pid)
            held = self.devices & open_devices(self.proc, pid, self.deadline) if process is not None else None
            if process is None or not held or pid in _ancestors(self.proc):
                continue
            proved = self.mark.is_on(self.proc, pid)
            now = find(self.proc, pid)  # what was read is this process's, not of another that has its number now
            if now is None or now.start != process.start:
                continue
            if not proved:
                self.left.foreign.add(pid)
                continue
            told = self.told.get(pid)
            if told is None or told.process.start != process.start:
                told = self.told[pid] = _Told(process)
            told.devices |= held

    def alive(self) -> "list[_Told]":
        """Return those that are not gone, whatever they still hold: an exiting one may hang in the driver."""
        found = []
        for told in self.told.values():
            now = find(self.proc, told.process.pid)
            if now is not None and now.start == told.process.start:
                found.append(told)
        return found

    def run(self) -> Left:
        """End them; returns by the deadline."""
        began = time.monotonic()
        while True:
            self.look()
            alive = self.alive()
            now = time.monotonic()
            if not alive or now >= self.deadline:
                break
            number = _TERM if now - began < min(TERM_WAIT, (self.deadline - began) / 2) else _KILL
            for told in alive:
                if told.signal != number:
                    told.signal = number
                    send(self.proc, told.process, self.mark.uid, number)
            time.sleep(_POLL)
        self.left.stuck = [(told.process, told.devices) for told in alive]
        self.left.ended = len(self.told) - len(alive)
        return self.left


def end_processes(proc: str, mark: "Mark", devices: "Collection[int]", deadline: float) -> Left:
    """End the job's processes that have one of the devices open: TERM, then KILL; returns by `deadline` (monotonic).

    Without a user or a scheduler to go by, or for root's jobs, nothing is ended.
    """
    wanted = {device for device in devices if device > 0}
    if mark.uid <= 0 or not wanted or mark.owner.scheduler not in ("slurm", "sge"):
        return Left()
    return _Ending(proc, mark, wanted, deadline).run()


def send(proc: str, process: Process, uid: int, number: int) -> bool:
    """Signal a process if it is still that one, by start time and user; False if nothing was sent.

    The pidfd is taken before the look, so it is this very process that is signalled, or none. Where Python or the
    kernel have no pidfds, a number that is given anew between look and signal would be signalled: microseconds, in
    which the kernel would have to go through all its numbers.
    """
    fd = -1
    try:
        if hasattr(os, "pidfd_open"):
            try:
                fd = os.pidfd_open(process.pid)
            except OSError as error:
                if error.errno == _ESRCH:
                    return False
        now = find(proc, process.pid)
        if now is None or now.start != process.start or owner_uid(proc, process.pid) != uid:
            return False
        if fd >= 0:
            import _signal  # type: ignore[import-not-found]  # the module around it is not free

            _signal.pidfd_send_signal(fd, number)
        else:
            os.kill(process.pid, number)
    except OSError:  # it ended meanwhile
        return False
    else:
        return True
    finally:
        if fd >= 0:
            os.close(fd)


def _ancestors(proc: str) -> "set[int]":
    """Return this process and those above it, up to init."""
    found = {os.getpid()}
    pid = os.getppid()
    while pid > 1 and pid not in found:
        found.add(pid)
        pid = parent(proc, pid)
    return found
