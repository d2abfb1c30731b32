"""The verdict file: what is written is read, and files of older and later releases too."""

import pytest

from nodeagent.errors import UnknownFormat
from nodeagent.state.verdict_file import OK, UnitLine, VerdictFile, decode_verdict

LINES = (
    UnitLine("GPU-1", 0, 0, "0000:1b:00.0", "H100", 0, (0, 5, 5), OK, "", slots=4),
    UnitLine(
        "MIG-1", -1, 1, "0000:1c:00.0", "H100 MIG 3g.40gb", 1, (5, 0, 9), OK, "why\tnot", "GPU-2", (12, 13), 1, 40 << 30
    ),
    UnitLine("MIG-2", -1, 1, "0000:1c:00.0", "H100 MIG 3g.40gb", 1, (5, 9, 0), OK, "", "GPU-2"),
)


def written() -> str:
    return VerdictFile("boot", 5.0, LINES).encode()


def cut(text: str, columns: int) -> str:
    """Return the text with its unit lines as a release with so many columns wrote them."""
    return "".join("\t".join(line.split("\t")[:columns]) + "\n" for line in text.splitlines())


def test_each_column_is_read_as_it_was_written() -> None:
    read = decode_verdict("verdict", written()).units
    for line, again in zip(LINES, read):
        assert {name: getattr(line, name) for name in UnitLine.__slots__} == {
            name: getattr(again, name) for name in UnitLine.__slots__
        }
    assert len(read) == len(LINES)


def test_a_file_of_an_older_or_a_later_release_is_read() -> None:
    older = decode_verdict("verdict", cut(written(), 10)).units
    assert [(line.unit, line.gpu, line.caps, line.slots, line.memory) for line in older] == [
        ("GPU-1", "GPU-1", (), 1, 0),
        ("MIG-1", "GPU-2", (), 1, 0),
        ("MIG-2", "GPU-2", (), 1, 0),
    ]
    assert [line.caps for line in decode_verdict("verdict", cut(written(), 11)).units] == [(), (12, 13), ()]
    later = written().replace(f"\t{40 << 30}\n", f"\t{40 << 30}\tmore\tcolumns\n")
    assert decode_verdict("verdict", later).units[1].memory == 40 << 30


def test_a_damaged_line_is_an_error() -> None:
    for text in (cut(written(), 9), written().replace("12,13", "12,x")):
        with pytest.raises(UnknownFormat):
            decode_verdict("verdict", text)
