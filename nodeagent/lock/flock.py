"""The exclusive right to change a node's locks: one flock, waited for in bounded time. Lean."""

import errno
import fcntl
import os
import time

from nodeagent.errors import LockBusy, UntrustedFile
from nodeagent.state.files import judge_own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

FLOCK_TIMEOUT = 1.5
_OPEN_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Flock:
    """Held between entry and exit; given back by a crash too. `trace` is called at named points (see Store.trace)."""

    __slots__ = ("_fd", "_path", "_timeout", "_trace")

    def __init__(self, path: str, timeout: float, trace: "Callable[[str], None]") -> None:
        self._path = path
        self._timeout = timeout
        self._trace = trace
        self._fd = -1

    def __enter__(self) -> None:
        # 0600: a user who could open it could hold the flock and stop every hook.
        self._fd = os.open(self._path, _OPEN_LOCK, 0o600)
        try:
            judge_own(self._path, os.fstat(self._fd))
        except UntrustedFile:
            os.close(self._fd)
            raise
        deadline = time.monotonic() + self._timeout
        pause = 0.001
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EINTR) or time.monotonic() > deadline:
                    os.close(self._fd)
                    if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
                        raise LockBusy(self._path, self._timeout) from error
                    raise
                self._trace("busy")
                time.sleep(pause)
                pause = min(pause * 2, 0.02)
            else:
                self._trace("locked")
                return

    def __exit__(
        self, kind: "type[BaseException] | None", error: "BaseException | None", trace: "TracebackType | None"
    ) -> None:
        os.close(self._fd)
        self._trace("unlocked")
