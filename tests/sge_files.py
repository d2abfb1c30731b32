"""What Grid Engine's exec daemon leaves on a node for a job, laid out for a test: job file, spool directory."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from nodeagent.hook.sge_job import CULL_VERSION, HARD_REQUESTS, JOB_FIELDS, OWNER, TASKS, UID

# CE_name (900) and the fields after it: S text, U u32, D double
_REQUEST = "SSUSDUUSUSDUUUS"
_CODE = {"S": 8, "U": 3, "D": 2, "L": 9, "O": 10, "-": 11}


def _value(code: str, value: object = None) -> bytes:
    if code == "S":
        return (value if isinstance(value, bytes) else str(value or "").encode()) + b"\0"
    if code == "D":
        return struct.pack(">d", value or 0.0)
    if code == "U":
        return struct.pack(">I", value or 0)
    return b"" if code == "-" else value if isinstance(value, bytes) else struct.pack(">I", 0)


def _list(first: int, codes: str, rows: Sequence[Sequence[object]], name: bytes = b"a list") -> bytes:
    """Return a packed list whose fields are numbered from `first`."""
    data = struct.pack(">II", 1, len(rows)) + name + b"\0" + struct.pack(">II", 0, len(codes))
    data += b"".join(struct.pack(">II", first + at, 0x100000 | _CODE[code]) for at, code in enumerate(codes))
    for row in rows:
        data += struct.pack(">II", 2, len(codes)) + bytes((len(codes) + 7) // 8)
        data += b"".join(_value(code, value) for code, value in zip(codes, row))
    return data


def packed_job(
    requests: Sequence[tuple[str, str, float, int]] = (),
    slots: Sequence[tuple[str, int]] = (("n1", 1),),
    user: str = "alice",
    strings: Sequence[bytes] = (),
    described: str = "",
) -> bytes:
    """Return a job file: requests (name, text, number, consumable), (host, slots) granted, strings of the user's.

    With `described` these are the fields that stand before the job, as on the slave hosts of a parallel job.
    """
    rows = [(n, "", 1, t, v, 0, kind, "", 0, "", 0.0, 0, 0, 0, "") for n, t, v, kind in requests]
    granted = _list(2100, "SUSU", [(f"all.q@{host}", 0, host, count) for host, count in slots])
    fields: dict[int, object] = {
        0: 603,
        1: b"job",
        OWNER: user,
        UID: 1000,
        33: _list(1, "SS", [(b"HOME", b"/home/alice"), *((string, string) for string in strings)]),
        35: _list(1, "S", [(string,) for string in strings]),
        HARD_REQUESTS: _list(900, _REQUEST, rows) if rows else None,
        TASKS: _list(50, "UL", [(1, granted)]),
    }
    body = b"".join(_value(code, fields.get(at)) for at, code in enumerate(JOB_FIELDS))
    head = struct.pack(">III", 0, CULL_VERSION, 1 if described else 2)
    if described:
        head += struct.pack(">I", len(described))
        head += b"".join(struct.pack(">II", 50 + at, 0x2000 | _CODE[code]) for at, code in enumerate(described))
    return head + struct.pack(">I", len(JOB_FIELDS)) + bytes(11) + body


class SgeJob:
    """A job's files below a spool directory; `environ` is what the prolog would get."""

    def __init__(  # noqa: PLR0917
        self,
        spool: Path,
        job: str = "603",
        task: str = "",
        gpus: int | None = 2,
        slots: int = 1,
        name: str = "gpu",
        consumable: int = 1,
        user: str = "alice",
        model: str = "",
    ) -> None:
        for directory in (spool, spool / "jobs", spool / "active_jobs"):
            directory.mkdir(exist_ok=True, mode=0o755)
        padded = job.zfill(10)
        self.file = spool / "jobs" / padded[:2] / padded[2:6] / f"{padded[6:]}.{task or 1}"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        requests = [(name, str(gpus), float(gpus), consumable)] if gpus is not None else []
        requests += [("gpu_model", model, 0.0, 0)] if model else []
        self.file.write_bytes(packed_job(requests, (("n1", slots), ("n2", 9)), user))
        self.directory = spool / "active_jobs" / f"{job}.{task or 1}"
        self.directory.mkdir(exist_ok=True)
        (self.directory / "environment").write_text("HOME=/home/alice\n")
        (self.directory / "pe_hostfile").write_text(f"n1 {slots} all.q@n1 UNDEFINED\nn2 9 all.q@n2 UNDEFINED\n")
        self.environ = {
            "JOB_ID": job,
            "SGE_TASK_ID": task or "undefined",
            "SGE_JOB_SPOOL_DIR": str(self.directory),
        }

    def exported(self) -> dict[str, str]:
        """Return what the job's environment is now: the last line of a name wins."""
        lines = (self.directory / "environment").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


class SlaveTask:
    """A task of a parallel job of `slots` slots on this slave host; `place` is where its shepherd is started."""

    def __init__(self, spool: Path, job: str = "603", slots: int = 2, gpus: int = 1, consumable: int = 1) -> None:
        made = SgeJob(spool, job, gpus=gpus, slots=slots, consumable=consumable)
        requests = [("gpu", str(gpus), float(gpus), consumable)]
        made.file.write_bytes(packed_job(requests, (("n1", slots),), described=JOB_FIELDS))
        for name in ("environment", "pe_hostfile"):
            (made.directory / name).unlink()
        self.directory = made.directory
        self.file = made.file
        self._lines = f"CUDA_VISIBLE_DEVICES=3\nNSLOTS=9\nJOB_ID={job}\nSGE_TASK_ID=undefined\nNSLOTS={slots}\n"
        self.another(1)

    def another(self, number: int) -> SlaveTask:
        """Become the next task of the same job."""
        self.place = self.directory / f"{number}.n1"
        self.place.mkdir()
        (self.place / "environment").write_text(self._lines)
        return self

    def exported(self) -> dict[str, str]:
        """Return what the task's environment is now: the last line of a name wins."""
        lines = (self.place / "environment").read_text(errors="replace").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)
