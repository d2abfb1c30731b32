"""Keeping a grant's processes off all other GPUs of the node: which way, set, verified, and undone. Lean."""

import errno
import os
import time

from nodeagent.errors import NodeAgentError, NotIsolated
from nodeagent.isolation.cgroup_v1 import CgroupV1
from nodeagent.isolation.cgroup_v2 import CgroupV2
from nodeagent.isolation.device_files import DeviceFiles
from nodeagent.isolation.devices import split
from nodeagent.isolation.record import Confinement, confinement_for, read_all
from nodeagent.lock.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nodeagent.isolation.method import Method
    from nodeagent.lock.record import Owner
    from nodeagent.state.files import Directory
    from nodeagent.state.verdict_file import UnitLine

AUTO, NONE = "auto", "none"
AUTOMATIC = ("cgroup-v1", "cgroup-v2")
"""What `auto` takes the first of. Not device-files: that changes the node itself, which somebody has to want."""
PATIENCE = 1.0
"""Seconds in which a device that is closed has to refuse; one that is not may wait for its driver."""
_READ_WRITE = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def methods(proc: str = "/proc") -> "dict[str, Method]":
    """Return every method by name: one line each. `proc` is where the driver's own /proc tree is."""
    return {
        "cgroup-v1": CgroupV1(),
        "cgroup-v2": CgroupV2(),
        "device-files": DeviceFiles(proc),
    }


def pick(setting: str, known: "Mapping[str, Method]", pid: int) -> "Method | None":
    """Return the method for a process, None if it is to have none.

    Raises:
        NotIsolated: the one that the setting names cannot be had.

    """
    if setting == NONE:
        return None
    if setting == AUTO:
        return next((known[name] for name in AUTOMATIC if not known[name].why_not(pid)), None)
    why = known[setting].why_not(pid)
    if why:
        raise NotIsolated(setting, why)
    return known[setting]


class Wish:
    """Whom to confine to what: `setting` and the roots of the configuration, units known and granted, a process."""

    __slots__ = ("dev", "granted", "known", "pid", "proc", "setting")

    def __init__(  # noqa: PLR0917
        self,
        setting: str,
        dev: str,
        proc: str,
        known: "Sequence[UnitLine]",
        granted: "Sequence[UnitLine]",
        pid: int,
    ) -> None:
        self.setting = setting
        self.dev = dev
        self.proc = proc
        self.known = known
        self.granted = granted
        self.pid = pid


def confine(state: "Directory", owner: "Owner", wish: Wish) -> bool:
    """Confine a process, and all that it starts from now on, to its grant's devices; False if nothing is to be done.

    It is tried out before the process itself is confined: a test of ours, confined alike, is refused each device that
    is not the grant's. The grant's own are not opened, as that can take a driver seconds.

    Raises:
        NotIsolated: it is not confined. What was begun is undone, or named by its record for `undo_gone`.
        LockBusy, OSError: as NotIsolated.

    """
    method = pick(wish.setting, methods(wish.proc), wish.pid)
    if method is None:
        return False
    own, others, common = split(wish.dev, wish.known, wish.granted, wish.proc)
    if not others and not (method.node_wide and own):
        return True
    grant = confinement_for(owner, method.name)
    grant.units = tuple(unit.unit for unit in wish.granted)
    method.plan(grant, wish.pid, own)
    grant.write(state)
    try:
        if method.node_wide:  # what one hook sees of a file must still be so when it changes it
            with Store(state).exclusive():
                closed = method.close(grant, others, [*own, *common])
        else:
            closed = method.close(grant, others, [*own, *common])
        _try(method, grant, [device.path for device in closed if device.path])
        method.enter(grant, wish.pid)
    except (NodeAgentError, OSError):
        try:
            _undo(state, method, grant, {})
        except OSError:
            pass  # its record stays: `undo_gone`
        raise
    return True


def undo_job(state: "Directory", owners: "Mapping[str, Owner]", scheduler: str, job: str, task: str) -> None:
    """Undo what was made for a job whose epilog this process is. Under the flock, before the locks are released.

    What its processes still use stays until they are gone: it keeps them confined.
    """
    known = methods()
    for grant in read_all(state):
        if grant.is_job(scheduler, job, task) and grant.method in known:
            known[grant.method].leave(grant)
            _undo(state, known[grant.method], grant, owners)


def leftovers(state: "Directory", owners: "Mapping[str, Owner]") -> "list[Confinement]":
    """Return what was made for grants that are no more, in use or not.

    Jobs without GPUs are among them: they have no lock and are confined all the same.
    """
    held = {owner.grant for owner in owners.values()}
    return [grant for grant in read_all(state) if grant.grant not in held and not grant.being_made()]


def undo_gone(state: "Directory", owners: "Mapping[str, Owner]") -> "list[str]":
    """Undo what is left of grants that are no more and is not used any more; return them. Under the flock."""
    known = methods()
    gone = []
    for grant in leftovers(state, owners):
        try:
            if grant.method in known and _undo(state, known[grant.method], grant, owners):
                gone.append(grant.grant)
        except OSError:
            continue  # to be seen again by whoever comes next
    return gone


def _undo(state: "Directory", method: "Method", grant: Confinement, owners: "Mapping[str, Owner]") -> bool:
    done = method.undo(grant, {unit for unit, owner in owners.items() if owner.grant != grant.grant})
    if done:
        grant.forget(state)
    return done


def _try(method: "Method", grant: Confinement, paths: "Iterable[str]") -> None:
    """Let a child, confined as the job is going to be, open the files.

    Raises:
        NotIsolated: one of them did not refuse, or did not answer in time.

    """
    reading, writing = os.pipe()
    try:
        child = os.fork()
        if child == 0:
            _be_refused(method, grant, paths, writing)
        os.close(writing)
        writing = -1
        if not _ends(child, time.monotonic() + PATIENCE):
            os.kill(child, 9)
            _ends(child, time.monotonic() + PATIENCE / 10)  # in the driver, it may never; then it is init's
            raise NotIsolated(method.name, f"a device did not refuse within {PATIENCE:g} s")
        said = os.read(reading, 1024).decode("utf-8", "replace")
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    if said != "refused":
        raise NotIsolated(method.name, said or "its test ended too early")


def _be_refused(method: "Method", grant: Confinement, paths: "Iterable[str]", answer: int) -> None:
    """Open each file and say what came of it: `refused`, or the first that was not. Does not return."""
    said = "refused"
    try:
        method.become(grant)
        for path in paths:
            error = _error_of_opening(path)
            if error != method.refused:
                what = errno.errorcode.get(error, str(error)) if error else "it opened"
                said = f"{path} is not closed to others: {what} instead of {errno.errorcode[method.refused]}"
                break
    except BaseException as error:  # noqa: BLE001  a child that must not go on as its parent
        said = f"its test failed: {error}"
    finally:
        try:
            os.write(answer, said.encode("utf-8", "replace")[:1000])
        finally:
            os._exit(0)


def _error_of_opening(path: str) -> int:
    try:
        fd = os.open(path, _READ_WRITE)
    except OSError as error:
        return error.errno or -1
    os.close(fd)
    return 0


def _ends(child: int, deadline: float) -> bool:
    pause = 0.0002
    while True:
        try:
            if os.waitpid(child, os.WNOHANG)[0]:
                return True
        except ChildProcessError:  # whoever started us ignores SIGCHLD: the kernel reaps
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.01)
