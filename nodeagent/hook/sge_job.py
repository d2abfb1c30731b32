"""What a Grid Engine job asked for, from the exec daemon's own job file: no question to the qmaster. Lean.

`<spool>/jobs/NN/NNNN/NNNN.TASK` is one packed job object (CULL, big-endian). It is read strictly, field after field
from the first byte to the last, never searched: a string that a user controls ends at its NUL at a known place, so
nothing in it can be taken for a request. Lists carry a description of their elements; the job itself does so on slave
hosts only, so its 85 fields of Son of Grid Engine 8.1.9 stand here. A file of any other form is refused, and
`qstat -xml` asked instead.
"""

from nodeagent.errors import NodeAgentError

CULL_VERSION = 0x10020000
# U number, S text, L list, O object, D double, - nothing: the fields of a job (JB_Type) in their order
JOB_FIELDS = "USULLLLLLSSSSSSUSUUUSUSUSSUUUUULULLLUSOUULLLULLLLULSLLSSLLLLLLLLLS-LLUUUULLDDDDDDUUUL"
OWNER, UID, HARD_REQUESTS, TASKS = 20, 21, 45, 64
CE_NAME, CE_STRINGVAL, CE_DOUBLEVAL, CE_CONSUMABLE = 900, 903, 904, 906
JG_QHOSTNAME, JG_SLOTS = 2102, 2103
ONCE_A_JOB = 2  # CE_consumable: 0 NO, 1 YES (each slot), 2 JOB
_CODES = {2: "D", 3: "U", 6: "U", 8: "S", 9: "L", 10: "O", 11: "-", 12: "S"}
_FREE_ELEMENT = 1
_MOST_FIELDS = 200
_MOST_DEPTH = 8


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


class JobFile:
    """A job: `owner`, `uid`, what it asked for and how many slots it has on which host."""

    __slots__ = ("owner", "requests", "slots", "texts", "uid")

    def __init__(
        self,
        owner: str,
        uid: int,
        requests: "dict[str, tuple[float, int]]",
        slots: "list[tuple[str, int]]",
        texts: "dict[str, str] | None" = None,
    ) -> None:
        self.owner = owner
        self.uid = uid
        self.requests = requests  # complex -> (number, how it is consumed)
        self.slots = slots  # (host, slots), the master host first
        self.texts = texts or {}  # complex -> what was asked for, as written

    def units(self, name: str, host: str) -> int:
        """Return how many of the complex `name` the job was granted on `host`; 0 if it asked for none.

        A YES consumable counts for each slot there; a JOB consumable once, on the master host, where the prolog runs.

        Raises:
            BadAmount: it asked for a part of one, or for less than none.

        """
        number, consumable = self.requests.get(name, (0.0, 1))
        if number < 0 or number != int(number):
            raise BadAmount(name, number)
        if consumable == ONCE_A_JOB:
            return int(number)
        here = [slots for where, slots in self.slots if where == host] or [slots for _, slots in self.slots[:1]]
        return int(number) * max(1, sum(here))


class BadAmount(NodeAgentError):
    """A job asked for a number of GPUs that cannot be."""

    def __init__(self, name: str, number: float) -> None:
        self.name = name
        self.number = number
        super().__init__(name, number)

    def __str__(self) -> str:
        return f"{self.name}={self.number:g} was asked for, which is no number of GPUs"


class _Reader:
    """Reads packed values one after the other; every reading past the end, or of another form, raises."""

    __slots__ = ("at", "data", "path")

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        self.data = data
        self.at = 0

    def bad(self, why: str) -> UnknownJobFile:
        return UnknownJobFile(self.path, f"{why} at byte {self.at}")

    def word(self) -> int:
        end = self.at + 4
        if end > len(self.data):
            raise self.bad("cut short")
        value = int.from_bytes(self.data[self.at : end], "big")
        self.at = end
        return value

    def string(self) -> bytes:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise self.bad("cut short")
        value = self.data[self.at : end]
        self.at = end + 1
        return value

    def double(self) -> float:
        bits = self.word() << 32 | self.word()
        exponent = bits >> 52 & 0x7FF
        if not exponent:
            return 0.0
        value = (1 + (bits & (1 << 52) - 1) / (1 << 52)) * 2.0 ** (exponent - 1023)
        return -value if bits >> 63 else value

    def changed(self, count: int) -> None:
        """Skip an element's bits for changed fields, after their number."""
        if self.word() != count:
            raise self.bad("another number of fields")
        self.at += (count + 7) // 8

    def description(self) -> "list[tuple[int, str]]":
        count = self.word()
        if count > _MOST_FIELDS:
            raise self.bad("no description of a list")
        pairs = [(self.word(), self.word() & 0xFF) for _ in range(count)]
        try:
            return [(name, _CODES[kind]) for name, kind in pairs]
        except KeyError as error:
            raise self.bad(f"a field of type {error}") from error

    def element(self, fields: "list[tuple[int, str]]", depth: int) -> "dict[int, object]":
        if self.word() == _FREE_ELEMENT:
            fields = self.description()
        self.changed(len(fields))
        return {name: self.value(code, depth) for name, code in fields}

    def value(self, code: str, depth: int) -> object:
        if code == "U":
            return self.word()
        if code == "S":
            return self.string()
        if code == "D":
            return self.double()
        return [] if code == "-" else self.elements(code, depth)

    def elements(self, code: str, depth: int) -> "list[dict[int, object]]":
        """Read a list, or the one element of an object; nothing where there is none."""
        present = self.word()
        if not present:
            return []
        if present != 1 or depth > _MOST_DEPTH:
            raise self.bad("neither a list nor none")
        if code == "O":
            return [self.element(self.description(), depth + 1)]
        count = self.word()
        self.string()  # the list's name, which says nothing
        self.word()
        fields = self.description()
        if count > len(self.data):
            raise self.bad("a list longer than the file")
        return [self.element(fields, depth + 1) for _ in range(count)]


def read_job(path: str, data: bytes) -> JobFile:
    """Read a job file.

    Raises:
        UnknownJobFile: it is not of the known form, to the last byte.

    """
    reader = _Reader(path, data)
    if reader.word() != 0 or reader.word() != CULL_VERSION:
        raise reader.bad("not a packed job of the known version")
    if reader.word() == _FREE_ELEMENT:  # on the slave hosts of a parallel job the fields are described
        if "".join(code for _, code in reader.description()) != JOB_FIELDS:
            raise reader.bad("other fields than a job's")
    reader.changed(len(JOB_FIELDS))
    job = [reader.value(code, 0) for code in JOB_FIELDS]
    if reader.at != len(data):
        raise reader.bad("more than a job")
    requests: dict[str, tuple[float, int]] = {}
    texts: dict[str, str] = {}
    for request in _elements(job[HARD_REQUESTS]):
        name, number, consumable = (request.get(field) for field in (CE_NAME, CE_DOUBLEVAL, CE_CONSUMABLE))
        if not isinstance(name, bytes) or not isinstance(number, float) or not isinstance(consumable, int):
            raise reader.bad("requests of another form")
        requests[name.decode("latin-1")] = (number, consumable)
        text = request.get(CE_STRINGVAL)
        texts[name.decode("latin-1")] = text.decode("utf-8", "replace") if isinstance(text, bytes) else ""
    owner, uid = job[OWNER], job[UID]
    assert isinstance(owner, bytes)  # noqa: S101  by JOB_FIELDS
    assert isinstance(uid, int)  # noqa: S101  by JOB_FIELDS
    return JobFile(owner.decode("utf-8", "replace"), uid, requests, _slots(job[TASKS]), texts)


def _elements(value: object) -> "list[dict[int, object]]":
    return value if isinstance(value, list) else []


def _slots(tasks: object) -> "list[tuple[str, int]]":
    """Return (host, slots) of what the task was granted."""
    found = []
    for task in _elements(tasks):
        for value in task.values():
            for grant in _elements(value):
                host, slots = grant.get(JG_QHOSTNAME), grant.get(JG_SLOTS)
                if isinstance(host, bytes) and isinstance(slots, int):
                    found.append((host.decode("utf-8", "replace"), slots))
    return found
