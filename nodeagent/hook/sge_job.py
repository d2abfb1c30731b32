"""What a Grid Engine job asked for, from the exec daemon's own job file: no question to the qmaster. Lean.

The file `<spool>/jobs/NN/NNNN/NNNN.TASK` is Grid Engine's packed job object. Its lists carry their own description:
the number of fields, then (field number, type) for each. The list of requested complexes is known by its first field
number, CE_name = 900, and read by that description, field by field. Strings are NUL-terminated, so nothing that a
user writes into the job (names, arguments, variables) can contain such a description or look like a request; numbers
are big-endian. Measured on Son of Grid Engine 8.1.9; where anything looks different, `qstat -xml` is asked instead.
"""

from nodeagent.errors import NodeAgentError

_CE_NAME, _CE_VALTYPE, _CE_STRINGVAL, _CE_DOUBLEVAL = 900, 902, 903, 904
_DOUBLE, _ULONG, _STRING = 2, 3, 8
_MOST_FIELDS = 64
_ELEMENT = 2  # the word before each element of a list


class UnknownJobFile(NodeAgentError):
    """The exec daemon's job file is not of the form that is known."""

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(path, why)

    def __str__(self) -> str:
        return f"{self.path}: {self.why}; is this another release of Grid Engine?"


def job_file(spool: str, job: str, task: str) -> str:
    """Return the path of a job's file below the exec daemon's spool directory of this host."""
    digits = job.zfill(10)
    return f"{spool}/jobs/{digits[:2]}/{digits[2:6]}/{digits[6:]}.{task or '1'}"


class _Reader:
    __slots__ = ("at", "data", "path")

    def __init__(self, path: str, data: bytes, at: int) -> None:
        self.path = path
        self.data = data
        self.at = at

    def word(self) -> int:
        if self.at + 4 > len(self.data):
            raise UnknownJobFile(self.path, "cut short")
        value = int.from_bytes(self.data[self.at : self.at + 4], "big")
        self.at += 4
        return value

    def string(self) -> bytes:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise UnknownJobFile(self.path, "cut short")
        value = self.data[self.at : end]
        self.at = end + 1
        return value

    def double(self) -> float:
        bits = self.word() << 32 | self.word()
        exponent = bits >> 52 & 0x7FF
        fraction = bits & (1 << 52) - 1
        if not exponent:
            return 0.0
        value = (1 + fraction / (1 << 52)) * 2.0 ** (exponent - 1023)
        return -value if bits >> 63 else value


def requested(path: str, data: bytes, name: str) -> int:
    """Return how many of the complex `name` a job asked for, for each slot or job; 0 if it asked for none.

    Raises:
        UnknownJobFile: the file is not of the known form, or names the complex more than once.

    """
    first_field = _CE_NAME.to_bytes(4, "big")
    at = -1
    amounts = []
    lists = 0
    while True:
        at = data.find(first_field, at + 1)
        if at < 0:
            break
        fields = _description(path, data, at)
        if fields is not None:
            lists += 1
            amounts += _amounts(_Reader(path, data, at + 8 * len(fields)), fields, name.encode())
    if data.find(b"qstat_l_requests\0") >= 0 and not lists:
        raise UnknownJobFile(path, "holds requests of an unknown form")
    if len(amounts) > 1:
        raise UnknownJobFile(path, f"names {name} {len(amounts)} times")
    return amounts[0] if amounts else 0


def _description(path: str, data: bytes, at: int) -> "list[tuple[int, int]] | None":
    """Return (field number, type) of the list description whose first field stands at `at`; None if none does."""
    if at < 4:  # noqa: PLR2004
        return None
    reader = _Reader(path, data, at - 4)
    count = reader.word()
    if not 5 <= count <= _MOST_FIELDS or at + 8 * count > len(data):  # noqa: PLR2004
        return None
    fields = [(reader.word(), reader.word() & 0xFF) for _ in range(count)]
    if any(number != _CE_NAME + place for place, (number, _) in enumerate(fields)):
        return None
    if [kind for _, kind in fields[:5]] != [_STRING, _STRING, _ULONG, _STRING, _DOUBLE]:
        raise UnknownJobFile(path, "describes complexes in another way")
    return fields


def _amounts(reader: _Reader, fields: "list[tuple[int, int]]", name: bytes) -> "list[int]":
    """Return the amounts asked of `name` in the list whose elements begin where the reader stands."""
    amounts = []
    while reader.at + 8 <= len(reader.data):
        begin = reader.at
        if reader.word() != _ELEMENT or reader.word() != len(fields):
            reader.at = begin
            break
        reader.at += (len(fields) + 7) // 8  # a bit for each field: changed since it was packed
        values: dict[int, bytes | float] = {}
        for number, kind in fields:
            if kind == _STRING:
                values[number] = reader.string()
            elif kind == _ULONG:
                values[number] = reader.word()
            elif kind == _DOUBLE:
                values[number] = reader.double()
            else:
                raise UnknownJobFile(reader.path, f"has a field of type {kind}")
        if values[_CE_NAME] == name:
            amounts.append(_amount(reader.path, values[_CE_STRINGVAL], values[_CE_DOUBLEVAL]))
    return amounts


def _amount(path: str, text: "bytes | float", number: "bytes | float") -> int:
    assert isinstance(text, bytes)  # noqa: S101  by the types checked above
    assert isinstance(number, float)  # noqa: S101
    if number < 0 or number != int(number) or (text.isdigit() and int(text) != number):
        raise UnknownJobFile(path, f"asks for {text.decode('latin-1')!r}, {number:g} GPUs")
    return int(number)
