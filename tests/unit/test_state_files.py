"""Files that root trusts."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeagent.errors import UnknownFormat, UntrustedFile
from nodeagent.state.files import Directory, decode_pairs, encode_pairs, escape, read_trusted_bytes, unescape

NASTY = ["plain", "a=b\tc\nd", "100%", "%0A", "é中", "\udcff\x00", "", " spaced "]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("text", NASTY)
def test_escaping_keeps_any_text_on_one_line_and_gives_it_back(text: str) -> None:
    escaped = escape(text)
    assert "\n" not in escaped and "\t" not in escaped
    assert unescape(escaped) == text


def test_pairs_round_trip_and_unknown_formats_are_refused() -> None:
    text = encode_pairs([("key", "v=1\n2")])
    assert text.startswith("format=1\n")
    assert decode_pairs("x", text) == {"key": "v=1\n2"}
    with pytest.raises(UnknownFormat):
        decode_pairs("x", text.replace("format=1", "format=2"))
    with pytest.raises(UnknownFormat):
        decode_pairs("x", text[:-1])
    with pytest.raises(UnknownFormat):
        decode_pairs("x", "")


def test_a_plain_file_of_ours_is_read(place: Path) -> None:
    (place / "f").write_bytes(b"words")
    assert read_trusted_bytes(str(place / "f"))[0] == b"words"


def test_links_fifos_and_directories_are_refused_without_waiting(place: Path) -> None:
    (place / "real").write_text("x")
    (place / "link").symlink_to("real")
    os.mkfifo(place / "fifo")
    (place / "dir").mkdir()
    for name, why in (("link", "symbolic link"), ("fifo", "not a regular file"), ("dir", "not a regular file")):
        with pytest.raises(UntrustedFile, match=why):
            read_trusted_bytes(str(place / name))


@pytest.mark.parametrize("mode", [0o666, 0o664])
def test_a_file_that_others_can_write_is_refused(place: Path, mode: int) -> None:
    (place / "f").write_text("x")
    (place / "f").chmod(mode)
    with pytest.raises(UntrustedFile, match="others can write"):
        read_trusted_bytes(str(place / "f"))


def test_a_parent_that_others_can_write_is_refused_unless_sticky(place: Path) -> None:
    (place / "d").mkdir()
    (place / "d" / "f").write_text("x")
    (place / "d").chmod(0o777)
    with pytest.raises(UntrustedFile, match=str(place / "d")):
        read_trusted_bytes(str(place / "d" / "f"))
    (place / "d").chmod(0o1777)
    read_trusted_bytes(str(place / "d" / "f"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other owners")
def test_a_foreign_owner_is_refused_and_an_admitted_one_is_not(place: Path) -> None:
    (place / "f").write_text("x")
    os.chown(place / "f", 12345, 12345)
    with pytest.raises(UntrustedFile, match="12345"):
        read_trusted_bytes(str(place / "f"))
    assert read_trusted_bytes(str(place / "f"), (12345,))[0] == b"x"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make links of other owners")
def test_a_link_of_a_users_in_the_path_is_refused(place: Path) -> None:
    (place / "real").mkdir()
    (place / "real" / "f").write_text("x")
    (place / "link").symlink_to("real")
    assert read_trusted_bytes(str(place / "link" / "f"))[0] == b"x"
    os.lchown(place / "link", 12345, 12345)
    with pytest.raises(UntrustedFile, match="12345"):
        read_trusted_bytes(str(place / "link" / "f"))


def test_a_file_larger_than_its_limit_is_refused(place: Path) -> None:
    (place / "f").write_bytes(b"x" * 11)
    with pytest.raises(UntrustedFile, match="larger than 10"):
        read_trusted_bytes(str(place / "f"), limit=10)
    assert len(read_trusted_bytes(str(place / "f"), limit=11)[0]) == 11


def test_replacing_is_whole_and_leaves_no_temporary_file(place: Path) -> None:
    directory = Directory(str(place))
    directory.replace("f", "one")
    directory.replace("f", "two", durable=True)
    assert directory.read("f") == "two"
    assert directory.names() == ["f"]
    assert (place / "f").stat().st_mode & 0o777 == 0o644


def test_a_state_directory_that_is_a_link_or_a_file_is_refused(place: Path) -> None:
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    (place / "file").write_text("x")
    for name in ("link", "file"):
        with pytest.raises(UntrustedFile):
            Directory(str(place / name), create=True)
    with pytest.raises(FileNotFoundError):
        Directory(str(place / "none"))
    assert Directory(str(place / "new"), create=True).names() == []


def test_what_a_killed_writer_left_is_forgotten_and_nothing_else(place: Path) -> None:
    for name in (".verdict.1", ".verdict.2", "verdict"):
        (place / name).write_text("x")
    (place / ".link.1").symlink_to("/nowhere")
    for name in (".verdict.1", "verdict", ".link.1"):
        os.utime(place / name, (0, 0), follow_symlinks=False)
    directory = Directory(str(place))
    directory.forget_temporaries(60)
    assert directory.names() == [".verdict.2", "verdict"]


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: os.link("bystander", path), lambda path: os.symlink("bystander", path)]
)
def test_nothing_is_written_through_what_stands_in_a_new_files_place(
    place: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[str], object]
) -> None:
    monkeypatch.chdir(place)
    Path("bystander").write_text("own\n")
    make(f".verdict.{os.getpid()}")
    Directory(str(place)).replace("verdict", "new\n")
    assert (Path("verdict").read_text(), Path("bystander").read_text()) == ("new\n", "own\n")
    assert sorted(os.listdir(place)) == ["bystander", "verdict"]
