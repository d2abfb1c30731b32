"""history.db: what is written can be read, within its bounds, whatever the file or the disk has become."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.errors import UntrustedFile
from nodeagent.history import place, reader, schema, store
from nodeagent.history.entry import RETIRE, VERDICT, XID, Entry
from nodeagent.history.place import FILE, OnNetwork, filesystem, is_network
from nodeagent.history.reader import NoHistoryYet, read
from nodeagent.history.schema import MIGRATIONS, VERSION, NewerHistory, migrate
from nodeagent.history.store import ASIDE, Damaged, NotSuitable, Store

GPU = "GPU-00000001-0000-4000-8000-000000000000"
FULL = Entry(
    1700000000.5,
    VERDICT,
    "boot",
    GPU,
    3,
    "0000:3b:00.0",
    "165",
    "OK",
    "FAILED",
    "gpu-lost",
    "error",
    "reboot_node",
    "agent",
    "GPU 3 is lost",
    2,
    ({"check": "gpu-lost", "severity": "error"},),
    {"uuid": GPU, "links": {"0000:1b:00.0": 5}, "power": 1.5},
)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[str]:
    tmp_path.chmod(0o755)
    yield str(tmp_path)


def verdict(after: str, boot: str = "boot", at: float = 1.0, again: bool = False) -> Entry:
    return Entry(at, VERDICT, boot, GPU, after=after, again=again)


def kept(data: str, *entries: Entry) -> list[Entry]:
    one = Store(data)
    for entry in entries:
        one.add([entry])
    one.close()
    return read(data)


def raw(data: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{data}/{FILE}", isolation_level=None)


def test_an_entry_is_read_as_it_was_written(data: str) -> None:
    assert kept(data, FULL, Entry(5, XID)) == [FULL, Entry(5, XID)]


def test_entries_are_found_by_gpu_kind_time_and_number(data: str) -> None:
    part = Entry(1, RETIRE, unit=f"{GPU}@1")
    other = Entry(2, XID, unit="GPU-x", serial="9")
    last = Entry(3, RETIRE, unit="GPU-x")
    node = Entry(4, VERDICT)
    kept(data, FULL, part, other, last, node)
    assert read(data, GPU) == [FULL, part] and read(data, GPU[:10]) == [FULL, part]
    assert read(data, "165") == [FULL] and read(data, "0000:3b:00.0") == [FULL]
    assert read(data, "9") == [other, last], "a deed names no serial, its GPU has one"
    assert read(data, kinds=[XID, VERDICT]) == [FULL, other, node]
    assert read(data, since=3) == [FULL, last, node] and read(data, limit=2) == [last, node]
    assert read(data, "GPU-x", 3, [RETIRE], 1) == [last] and read(data, "nobody") == []


def test_only_root_can_open_the_file_and_what_is_beside_it(data: str) -> None:
    one = Store(data)
    one.add([FULL])
    modes = {name: os.stat(f"{data}/{name}").st_mode & 0o777 for name in os.listdir(data)}
    one.close()
    assert modes == {FILE: 0o600, f"{FILE}-wal": 0o600, f"{FILE}-shm": 0o600}


def test_each_commit_is_on_the_disk_and_the_log_is_short(data: str) -> None:
    one = Store(data)
    ask = one._database.execute
    assert ask("PRAGMA journal_mode").fetchone() == ("wal",)
    assert ask("PRAGMA synchronous").fetchone() == (2,) and ask("PRAGMA auto_vacuum").fetchone() == (2,)
    assert ask("PRAGMA wal_autocheckpoint").fetchone() == (256,)
    one.close()


def test_a_verdict_told_again_is_written_if_it_is_news(data: str) -> None:
    told = [
        verdict("OK", again=True),
        verdict("OK", again=True, at=2),
        verdict("FAILED", at=3),
        verdict("FAILED", at=4, again=True),
        verdict("FAILED", "next", at=5, again=True),
        verdict("OK", "next", at=6, again=True),
        verdict("OK", "third", at=7, again=True),
    ]
    found = [(entry.at, entry.before, entry.after, entry.boot_id) for entry in kept(data, *told)]
    assert found == [
        (1, "", "OK", "boot"),
        (3, "", "FAILED", "boot"),
        (5, "FAILED", "FAILED", "next"),
        (6, "FAILED", "OK", "next"),
    ]


def test_a_deed_told_again_is_written_once(data: str) -> None:
    deed = Entry(100.0, RETIRE, unit=GPU, again=True)
    later = Entry(101.0, RETIRE, unit=GPU, again=True)
    assert [entry.at for entry in kept(data, deed, deed, later, deed)] == [100, 101]


def test_text_that_is_no_text_is_kept_readable_and_an_entry_that_cannot_be_kept_costs_only_itself(data: str) -> None:
    one = Store(data)
    odd = Entry(1, XID, evidence="a\udcff\0b" + "x" * 10_000)
    assert one.add([odd, Entry(2, XID, facts={"a": object()}), Entry(3, XID, count=1 << 70), Entry(4, XID)]) == 2
    one.close()
    first, last = read(data)
    assert first.evidence.startswith("a\\udcff\0b") and len(first.evidence) < 5000 and last.at == 4


def test_long_facts_lose_their_lists_first(data: str) -> None:
    many = {"uuid": GPU, "processes": [{"pid": pid} for pid in range(5000)], "links": {"a": 1}}
    huge = {"uuid": "x" * 20_000}
    cut, nothing = kept(data, Entry(1, VERDICT, facts=many), Entry(2, VERDICT, facts=huge))
    assert cut.facts == {"uuid": GPU, "processes": "left out", "links": {"a": 1}}
    assert nothing.facts == {"left_out": True}


def test_what_is_too_old_goes_a_thousand_at_a_time(data: str) -> None:
    one = Store(data)
    for at in range(50):
        one.add([Entry(at * 100.0 + n, XID) for n in range(50)])
    one.prune(now=6000.0, max_age=2000.0, max_size=64 << 20)
    assert len(read(data)) == 1500
    one.prune(now=6000.0, max_age=2000.0, max_size=64 << 20)
    assert [read(data)[0].at, len(read(data))] == [4000.0, 500]
    one.close()


def test_the_files_never_grow_beyond_their_bound_and_the_newest_stay(data: str) -> None:
    one = Store(data)
    bound, largest = 4 << 20, 0
    facts = {"a": "x" * 15_000}
    for at in range(0, 1600, 32):
        one.add([Entry(float(at + n), VERDICT, unit=GPU, facts=facts) for n in range(32)])
        largest = max(largest, one.size())
        one.prune(0.0, 1e9, bound)
        largest = max(largest, one.size())
    one.close()
    found = [entry.at for entry in read(data)]
    assert largest <= bound and found == [float(at) for at in range(int(found[0]), 1600)] and len(found) > 100


def test_a_smaller_bound_gives_room_back(data: str) -> None:
    one = Store(data)
    for _ in range(20):
        one.add([Entry(1.0, VERDICT, facts={"a": "x" * 15_000})] * 32)
    assert one.size() > 8 << 20
    one.prune(0.0, 1e9, 4 << 20)
    assert one.size() <= 4 << 20
    one.close()


def test_an_older_file_is_brought_up_to_date_step_by_step(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(data, FULL)
    more = (*MIGRATIONS, ("CREATE TABLE other (a)", "INSERT INTO other VALUES (7)"))
    monkeypatch.setattr(schema, "VERSION", VERSION + 1)
    database = raw(data)
    migrate(database, "p", more)
    assert database.execute("SELECT a FROM other").fetchall() == [(7,)]
    assert database.execute("PRAGMA user_version").fetchone() == (VERSION + 1,)
    migrate(database, "p", more)
    assert database.execute("SELECT count(*) FROM other").fetchone() == (1,)
    database.close()


def test_a_step_that_fails_leaves_the_file_as_it_was(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(data, FULL)
    monkeypatch.setattr(schema, "VERSION", VERSION + 1)
    database = raw(data)
    with pytest.raises(sqlite3.OperationalError):
        migrate(database, "p", (*MIGRATIONS, ("CREATE TABLE other (a)", "nonsense")))
    assert database.execute("PRAGMA user_version").fetchone() == (VERSION,)
    assert database.execute("SELECT name FROM sqlite_master WHERE name = 'other'").fetchall() == []
    database.close()


def test_a_file_of_a_later_release_is_left_alone(data: str) -> None:
    kept(data, FULL)
    database = raw(data)
    database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.close()
    before = Path(data, FILE).read_bytes()
    with pytest.raises(NewerHistory, match=f"version {VERSION + 1} is of a later release"):
        Store(data)
    with pytest.raises(NewerHistory):
        read(data)
    assert Path(data, FILE).read_bytes() == before and not Path(data, ASIDE).exists()


@pytest.mark.parametrize("damage", ["garbage", "page", "index"])
def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(data: str, damage: str) -> None:
    one = Store(data)
    for at in range(200):
        one.add([Entry(float(at), XID, unit=GPU, evidence="x" * 200)])
    one.close()
    path = Path(data, FILE)
    if damage == "garbage":
        path.write_bytes(b"no database at all\n" * 100)
    elif damage == "page":
        content = bytearray(path.read_bytes())
        content[4096 * 4 : 4096 * 6] = os.urandom(2 * 4096)
        path.write_bytes(content)
    else:
        database = raw(data)
        database.execute("PRAGMA writable_schema = ON")
        database.execute("UPDATE sqlite_master SET rootpage = 99999 WHERE type = 'index'")
        database.close()
    again = Store(data)
    assert again.moved and Path(data, ASIDE).exists()
    again.add([FULL])
    again.close()
    assert read(data) == [FULL]
    assert Store(data).moved == ""


def test_an_empty_file_is_a_new_one(data: str) -> None:
    Path(data, FILE).touch(0o600)
    one = Store(data)
    assert one.moved == ""
    one.close()


def test_a_file_that_was_removed_or_replaced_is_noticed(data: str) -> None:
    one = Store(data)
    assert one.is_there()
    os.rename(f"{data}/{FILE}", f"{data}/other")
    assert not one.is_there()
    Path(data, FILE).touch()
    assert not one.is_there()
    one.close()


def test_a_link_is_not_followed(data: str) -> None:
    os.symlink("/etc/passwd", f"{data}/{FILE}")
    with pytest.raises(UntrustedFile, match="symbolic link"):
        Store(data)


def test_without_a_write_ahead_log_nothing_is_written(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    class Stubborn(sqlite3.Connection):
        def execute(self, sql: str, *rest: object) -> sqlite3.Cursor:  # type: ignore[override]
            return super().execute("SELECT 'delete'" if "journal_mode" in sql else sql, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(store.sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Stubborn))
    with pytest.raises(NotSuitable, match="no write-ahead log"):
        Store(data)


@pytest.mark.parametrize(
    ("kind", "refused"),
    [("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("lustre", True), ("ext4", False), ("", False)],
)
def test_a_network_file_system_is_refused(data: str, kind: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "filesystem", lambda fd: kind)
    if not refused:
        Store(data).close()
        return
    with pytest.raises(OnNetwork, match=f"network file system \\({kind}\\)"):
        Store(data)
    with pytest.raises(OnNetwork):
        read(data)
    assert not Path(data, FILE).exists()


def test_the_kernel_says_what_an_open_directory_is_on(tmp_path: Path) -> None:
    fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert filesystem(fd) == "proc"
        assert filesystem(fd, "/nowhere") == ""
    finally:
        os.close(fd)
    (tmp_path / "fdinfo").mkdir()
    (tmp_path / "fdinfo" / "5").write_text("pos:\t0\nflags:\t0200000\nmnt_id:\t77\n")
    lines = ("7 1 0:5 / / rw - tmpfs none rw", "77 1 0:50 / /data rw,relatime shared:1 master:2 - nfs4 host:/a rw")
    (tmp_path / "mountinfo").write_text("\n".join(lines) + "\n")
    assert filesystem(5, str(tmp_path)) == "nfs4"
    (tmp_path / "mountinfo").write_text("77 1\n")
    assert filesystem(5, str(tmp_path)) == ""
    assert not is_network("tmpfs") and not is_network("fuse.fuse-overlayfs") and is_network("fuse.glusterfs")


def test_a_history_that_is_not_there_is_said(data: str) -> None:
    with pytest.raises(NoHistoryYet, match="missing"):
        read(data)
    Path(data, FILE).touch()
    with pytest.raises(NoHistoryYet):
        read(data)


def test_a_damaged_history_is_said_to_its_reader(data: str) -> None:
    Path(data, FILE).write_bytes(b"garbage" * 1000)
    with pytest.raises(reader.NotReadable, match="not a database"):
        read(data)
    assert not Path(data, ASIDE).exists(), "only the agent moves it"


def test_a_full_disk_is_no_damage(data: str) -> None:
    one = Store(data)
    pages = one._database.execute("PRAGMA page_count").fetchone()[0]
    one._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full") as caught:
        one.add([Entry(1, VERDICT, facts={"a": "x" * 10_000})] * 10)
    assert type(caught.value) is not sqlite3.DatabaseError and not isinstance(caught.value, Damaged)
    one.close()
    assert read(data) == []


def test_facts_are_json_in_the_file(data: str) -> None:
    kept(data, FULL)
    [(facts,)] = raw(data).execute("SELECT facts FROM entry").fetchall()
    assert json.loads(facts) == FULL.facts
