"""What tells one boot, and one process, from another of the same number. Lean."""


def boot_id(proc: str) -> str:
    """Return the running kernel's boot id, read below `proc`; empty if it cannot be read."""
    try:
        with open(f"{proc}/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(64).strip()
    except OSError:
        return ""


def start_time(pid: "int | str", proc: str = "/proc") -> str:
    """Return when a process began, in clock ticks since boot (proc(5), stat field 22); empty if it is gone.

    A zombie counts as gone: it holds nothing any more.
    """
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            fields = file.read(1024).rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if not fields or fields[0] in (b"Z", b"X") else fields[19].decode("ascii")
