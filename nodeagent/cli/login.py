"""Who is at the keyboard: the person behind root, for history and for other people."""

from __future__ import annotations

import os
import pwd

_UNSET = 0xFFFFFFFF
"""What the kernel says of a process that nobody has logged in for, as a service: (uid_t) -1."""


def login(proc: str = "/proc") -> str:
    """Return the name of whoever logged in, or a uid without a name as its number.

    The kernel's login uid is asked first: it stays the same through su and sudo, and nobody changes it without
    CAP_AUDIT_CONTROL. Where there is none (a container, a kernel without audit) it is what sudo says, and then the uid
    that the process runs as. For people, not for decisions: root may say what it likes.
    """
    uid = _login_uid(proc)
    if uid is None:
        name = os.environ.get("SUDO_USER", "") if os.geteuid() == 0 else ""
        return name or _name(os.getuid())
    return _name(uid)


def _login_uid(proc: str) -> int | None:
    try:
        with open(f"{proc}/self/loginuid", encoding="ascii") as file:
            uid = int(file.read())
    except (OSError, ValueError):
        return None
    return None if uid == _UNSET else uid


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
