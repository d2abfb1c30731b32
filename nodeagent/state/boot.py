"""What tells one boot, and one process, from another of the same number. Lean."""

import os


def read_start(path: str, most: int = 1024) -> bytes:
    """Return the first bytes of a file of the kernel's: no buffer, and no codec to import.

    Raises:
        OSError: it is missing or cannot be read.

    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, most)
    finally:
        os.close(fd)


def boot_id(proc: str) -> str:
    """Return the running kernel's boot id, read below `proc`; empty if it cannot be read."""
    try:
        return read_start(f"{proc}/sys/kernel/random/boot_id").decode().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def start_time(pid: "int | str", proc: str = "/proc") -> str:
    """Return when a process began, in clock ticks since boot (proc(5), stat field 22); empty if it is gone.

    A zombie counts as gone: it holds nothing any more.
    """
    try:
        fields = read_start(f"{proc}/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if not fields or fields[0] in (b"Z", b"X") else fields[19].decode()
