"""The lock store: granted once, all or nothing, released by the record."""

import os
from pathlib import Path

import pytest

from nodeagent.errors import LockBusy, UnitHeld, UnknownFormat
from nodeagent.lock.record import UNREADABLE, Owner, decode_owner
from nodeagent.lock.store import Store
from nodeagent.state.files import Directory
from tests.support import uuid

A, B, C = uuid(0), uuid(1), uuid(2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    tmp_path.chmod(0o755)
    return Store(Directory(str(tmp_path / "state"), create=True))


def owner(job: str, *units: str) -> Owner:
    return Owner("sge", job=job, node="n1", grant=f"g{job}", user="al\nice", since=5, units=units)


def test_a_record_comes_back_as_it_was_written() -> None:
    before = owner("4", A, B)
    after = decode_owner("x", before.encode())
    assert {name: getattr(after, name) for name in Owner.__slots__} == {
        name: getattr(before, name) for name in Owner.__slots__
    }


def test_a_grant_of_many_units_keeps_all_their_names() -> None:
    units = tuple(f"MIG-{i:08x}-0000-4000-8000-000000000000" for i in range(64))
    assert decode_owner("x", owner("4", *units).encode()).units == units


@pytest.mark.parametrize("name", ["../x", "GPU-../../etc", "x", "", "GPU-a/b", "GPU-" + "a" * 100])
def test_only_units_become_paths(store: Store, name: str) -> None:
    with store.exclusive():
        for change in (
            lambda: store.claim(owner("1", name)),
            lambda: store.retire(name, []),
            lambda: store.restore(name),
        ):
            with pytest.raises(UnknownFormat):
                change()


def test_what_is_claimed_is_held_and_what_is_released_is_free(store: Store) -> None:
    with store.exclusive():
        store.claim(owner("1", A, B))
        store.claim(owner("2", C))
    assert {unit: held.job for unit, held in store.owners().items()} == {A: "1", B: "1", C: "2"}
    with store.exclusive():
        freed = store.release(lambda held: held.job == "1")
    assert sorted(freed) == [A, B]
    assert list(store.owners()) == [C]


def test_a_claim_is_all_or_nothing(store: Store) -> None:
    with store.exclusive():
        store.claim(owner("1", B))
        with pytest.raises(UnitHeld, match="sge 1"):
            store.claim(owner("2", A, B, C))
    assert {unit: held.job for unit, held in store.owners().items()} == {B: "1"}


def test_debris_of_a_crash_is_swept_and_locks_are_not(store: Store, tmp_path: Path) -> None:
    with store.exclusive():
        store.claim(owner("1", A))
    locks = tmp_path / "state" / "locks"
    (locks / ".new-g9-x").mkdir()
    (locks / ".new-g9-x" / "owner").write_text("half")
    (locks / ".old-1-x").mkdir()
    (locks / B).mkdir()
    with store.exclusive():
        assert sorted(store.sweep()) == sorted([".new-g9-x", ".old-1-x", B])
        store.claim(owner("2", B))
    assert sorted(store.owners()) == sorted([A, B])


@pytest.mark.parametrize("text", ["format=2\nscheduler=sge\n", "format=1\nscheduler=sge\n", "", "\0garbage"])
def test_a_lock_that_cannot_be_read_is_held_never_free(store: Store, tmp_path: Path, text: str) -> None:
    lock = tmp_path / "state" / "locks" / A
    lock.mkdir(parents=True)
    (lock / "owner").write_text(text)
    with store.exclusive():
        assert store.sweep() == []
        with pytest.raises(UnitHeld):
            store.claim(owner("1", A))
    assert store.owners()[A].scheduler == UNREADABLE


def test_a_lock_whose_owner_is_a_link_is_held(store: Store, tmp_path: Path) -> None:
    lock = tmp_path / "state" / "locks" / A
    lock.mkdir(parents=True)
    (tmp_path / "mine").write_text(owner("1", A).encode())
    (lock / "owner").symlink_to(tmp_path / "mine")
    assert store.owners()[A].scheduler == UNREADABLE


def test_the_flock_is_had_by_one_and_given_back(store: Store, tmp_path: Path) -> None:
    with store.exclusive(), pytest.raises(LockBusy, match="busy for 0.01 s"), store.exclusive(timeout=0.01):
        pass
    with store.exclusive(timeout=0.01):
        pass
    assert (tmp_path / "state" / "lock").stat().st_mode & 0o777 == 0o600


def test_retiring_outlives_readers_and_an_unreadable_record_still_counts(store: Store, tmp_path: Path) -> None:
    with store.exclusive():
        store.retire(A, [("reason", "Xid 79"), ("by", "agent")])
    assert store.retired() == {A: {"reason": "Xid 79", "by": "agent"}}
    (tmp_path / "state" / "retired" / B).write_text("format=7\n")
    assert "unreadable" in store.retired()[B]["reason"]
    with store.exclusive():
        assert store.restore(A) and not store.restore(A)
    assert list(store.retired()) == [B]


def test_no_descriptor_is_left_open(store: Store) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with store.exclusive():
        store.sweep()
        store.claim(owner("1", A, B))
        store.retire(C, [])
        store.retired()
        store.release(lambda _: True)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_grant_is_extended_and_every_owner_names_all(store: Store) -> None:
    with store.exclusive():
        store.claim(owner("1", B))
        assert set(store.extend("g1", {A: A, B: B, C: C})) == {A, B, C}
    owners = store.owners()
    assert {unit: set(held.units) for unit, held in owners.items()} == dict.fromkeys((A, B, C), {A, B, C})
    assert {(held.job, held.grant, held.user, held.since) for held in owners.values()} == {("1", "g1", "al\nice", 5)}
    with store.exclusive():
        assert sorted(store.release(lambda held: held.job == "1")) == [A, B, C]


def test_a_held_unit_ends_an_extension_and_what_was_added_stays(store: Store) -> None:
    with store.exclusive():
        store.claim(owner("1", A))
        store.claim(owner("2", C))
        with pytest.raises(UnitHeld):
            store.extend("g1", {B: B, C: C})
        assert {unit: held.job for unit, held in store.owners().items()} == {A: "1", B: "1", C: "2"}
        assert set(store.extend("g1", {})) == {A, B}
    assert set(store.owners()[A].units) == {A, B}


def test_neither_a_grant_that_is_gone_nor_a_part_of_one_is_extended(store: Store, tmp_path: Path) -> None:
    with store.exclusive():
        assert store.extend("g1", {A: A}) == ()
        store.claim(owner("1", A, B))
        (tmp_path / "state" / "locks" / B).rename(tmp_path / "state" / "locks" / ".old-1-x")
        assert store.extend("g1", {C: C}) == ()
        with pytest.raises(UnknownFormat):
            store.extend("g1", {"../x": A})
    assert list(store.owners()) == [A]
