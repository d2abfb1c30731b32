"""The locks of one node: one directory a held unit, complete or absent; every change under one flock. Lean.

Why it holds at each step is written in docs/locking.md; what a crash leaves behind is removed by the next writer.
"""

import errno
import os

from nodeagent.errors import UnitHeld, UnknownFormat, UntrustedFile
from nodeagent.lock.flock import FLOCK_TIMEOUT, Flock
from nodeagent.lock.record import UNREADABLE, Owner, decode_owner
from nodeagent.lock.unit import is_unit
from nodeagent.state.files import Directory, decode_pairs, encode_pairs, make_directory, write_new

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

LOCK_FILE = "lock"
LOCKS = "locks"
RETIRED = "retired"
_PREPARED, _DISCARDED = ".new-", ".old-"


class Store:
    """Locks and retirements of one state directory. Methods that change anything need `with store.exclusive():`."""

    __slots__ = ("_state",)

    def __init__(self, state: Directory) -> None:
        self._state = state

    @property
    def state(self) -> Directory:
        """The state directory that the locks are in."""
        return self._state

    def trace(self, point: str) -> None:
        """Do nothing: a named point of the protocol, at which a test's own store stops to let another one run."""

    def exclusive(self, timeout: float = FLOCK_TIMEOUT) -> Flock:
        """Return a context in which no other writer runs.

        Raises:
            LockBusy: on entry, when it could not be had within `timeout` seconds.
            UntrustedFile: on entry, when others could have it open, and so keep it.

        """
        return Flock(f"{self._state.path}/{LOCK_FILE}", timeout, self.trace)

    # -- reading ----------------------------------------------------------------------------------------------------

    def owners(self, only: "Collection[str] | None" = None) -> "dict[str, Owner]":
        """Return the owner of each held unit (of `only`); one that cannot be read is `unreadable`: held, not free."""
        try:
            locks = self._state.sub(LOCKS)
        except FileNotFoundError:
            return {}
        try:
            held = {}
            names = locks.names() if only is None else only
            self.trace("listed")
            for unit in names:
                if is_unit(unit):
                    owner = self._read_owner(locks, unit)
                    if owner is not None:
                        held[unit] = owner
            return held
        finally:
            locks.close()

    def _read_owner(self, locks: Directory, unit: str) -> "Owner | None":
        path = f"{unit}/owner"
        try:
            return decode_owner(path, locks.read(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (UnknownFormat, UntrustedFile, OSError) as error:
            return Owner(UNREADABLE, grant=unit, run=str(error), units=(unit,))

    def retired(self) -> "dict[str, dict[str, str]]":
        """Return what is known of each retired unit: `reason`, `check`, `action`, `by`, `since`."""
        return read_retired(self._state)

    # -- changing, under the flock ----------------------------------------------------------------------------------

    def sweep(self) -> "list[str]":
        """Remove what crashes left: prepared or discarded directories and locks without an owner. Return their names.

        Only to be called under the flock: then nobody is half-way through anything.
        """
        locks = self._state.sub(LOCKS, create=True)
        try:
            swept = []
            for name in locks.names():
                if name.startswith((_PREPARED, _DISCARDED)) or (is_unit(name) and not _exists(f"{name}/owner", locks)):
                    try:
                        _remove_tree(name, locks.fd)
                    except OSError:
                        continue  # debris that will not go is in nobody's way, but a unit's name stays taken
                    swept.append(name)
            return swept
        finally:
            locks.close()

    def claim(self, owner: Owner) -> None:
        """Lock all of `owner.units` for it, or none.

        Raises:
            UnitHeld: one of them has an owner; nothing was taken.
            UnknownFormat: one of them cannot be a unit; nothing was taken.
            OSError: ENOSPC and the like; nothing was taken.

        """
        for unit in owner.units:
            _check(unit)
        locks = self._state.sub(LOCKS, create=True)
        text = owner.encode()
        done: list[str] = []
        try:
            for unit in owner.units:
                self._claim_one(locks, unit, owner.grant, text)
                done.append(unit)
        except (UnitHeld, OSError):
            self._discard(locks, done)
            raise
        finally:
            locks.close()

    def _claim_one(self, locks: Directory, unit: str, grant: str, text: str) -> None:
        prepared = f"{_PREPARED}{grant}-{unit}"
        make_directory(prepared, locks.fd)
        try:
            write_new(f"{prepared}/owner", text, locks.fd)
            self.trace("written")
            os.rename(prepared, unit, src_dir_fd=locks.fd, dst_dir_fd=locks.fd)
        except OSError as error:
            _remove_tree(prepared, locks.fd)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise UnitHeld(unit, str(self._read_owner(locks, unit))) from error
            raise
        self.trace("claimed")

    def _discard(self, locks: Directory, units: "Iterable[str]") -> None:
        """Free the units (a rename each), then remove what is left of their locks, or leave it to the next sweep."""
        gone = []
        for unit in units:
            name = f"{_DISCARDED}{os.getpid()}-{unit}"
            os.rename(unit, name, src_dir_fd=locks.fd, dst_dir_fd=locks.fd)
            gone.append(name)
            self.trace("discarded")
        for name in gone:
            try:
                _remove_tree(name, locks.fd)
            except OSError:
                continue

    def release(self, mine: "Callable[[Owner], bool]", only: "Collection[str] | None" = None) -> "dict[str, Owner]":
        """Free the units (of `only`) whose owner `mine` accepts and nothing else; return them with their owners."""
        freed = {unit: owner for unit, owner in self.owners(only).items() if mine(owner)}
        if freed:
            locks = self._state.sub(LOCKS)
            try:
                self._discard(locks, freed)
            finally:
                locks.close()
        return freed

    def extend(self, grant: str, units: "Mapping[str, str]") -> "tuple[str, ...]":
        """Add units (each with the GPU that it is, or is of) to a grant and return all that it holds then.

        Nothing happens, and nothing is returned, if the grant is gone, or if a crash left only a part of it.

        At each moment a unit that an owner of the grant names is locked by the grant: first a unit is locked, with an
        owner that names those before it and itself, and when all are, the older owners are replaced.

        Raises:
            UnitHeld: another has one of them; those before it are added.
            UnknownFormat: one of them cannot be a unit; nothing was added.
            OSError: ENOSPC and the like; some may have been added. Called again it goes on from there.

        """
        for unit in units:
            _check(unit)
        held = {unit: owner for unit, owner in self.owners().items() if owner.grant == grant}
        if not held or any(unit not in held for owner in held.values() for unit in owner.units):
            return ()
        model = max(held.values(), key=lambda owner: len(owner.units))
        gpus = {unit: owner.gpu_of(unit) for owner in (model, *held.values()) for unit in owner.units}
        locks = self._state.sub(LOCKS)
        try:
            for unit, gpu in units.items():
                if unit not in held:
                    owner = model.with_units({**gpus, unit: gpu})
                    self._claim_one(locks, unit, grant, owner.encode())
                    held[unit], gpus[unit] = owner, gpu
            for unit, owner in held.items():
                if set(owner.units) != set(gpus):
                    self._replace_owner(locks, unit, owner.with_units(gpus))
            return tuple(gpus)
        finally:
            locks.close()

    def _replace_owner(self, locks: Directory, unit: str, owner: Owner) -> None:
        lock = locks.sub(unit)
        try:
            lock.replace("owner", owner.encode())
        finally:
            lock.close()

    def hand_over(self, unit: str, owner: Owner) -> None:
        """Give a held unit another owner; at each moment it has the one or the other.

        Raises:
            OSError: it has the owner that it had.

        """
        _check(unit)
        locks = self._state.sub(LOCKS)
        try:
            self._replace_owner(locks, unit, owner)
        finally:
            locks.close()

    def retire(self, unit: str, facts: "Iterable[tuple[str, str]]") -> None:
        """Grant the unit no more, whoever holds it now; after this returns nothing is granted on it."""
        _check(unit)
        retired = self._state.sub(RETIRED, create=True)
        try:
            retired.replace(unit, encode_pairs(facts))
        finally:
            retired.close()
        self.trace("retired")

    def restore(self, unit: str) -> bool:
        """Undo `retire`; False if the unit was not retired."""
        _check(unit)
        try:
            retired = self._state.sub(RETIRED)
        except FileNotFoundError:
            return False
        try:
            return retired.remove(unit)
        finally:
            retired.close()


def read_retired(parent: Directory) -> "dict[str, dict[str, str]]":
    """Return the retirements recorded in `parent/retired`; one that cannot be read still counts as retired."""
    try:
        directory = parent.sub(RETIRED)
    except FileNotFoundError:
        return {}
    try:
        found = {}
        for unit in filter(is_unit, directory.names()):
            try:
                found[unit] = decode_pairs(unit, directory.read(unit))
            except FileNotFoundError:
                continue
            except (UnknownFormat, UntrustedFile, OSError) as error:
                found[unit] = {"reason": f"unreadable record: {error}", "by": "unknown"}
        return found
    finally:
        directory.close()


def _check(unit: str) -> None:
    """Refuse what cannot be a unit, here where names become paths."""
    if not is_unit(unit):
        raise UnknownFormat("unit", unit)


def _exists(name: str, directory: Directory) -> bool:
    try:
        os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _remove_tree(name: str, dir_fd: int) -> None:
    """Remove a lock directory of ours: at most files, one level deep."""
    try:
        inside = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(name, dir_fd=dir_fd)
        return
    try:
        for entry in os.listdir(inside):
            os.unlink(entry, dir_fd=inside)
    finally:
        os.close(inside)
    os.rmdir(name, dir_fd=dir_fd)
