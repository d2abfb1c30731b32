"""Users' names, from wherever the site keeps them, without waiting for a directory service that hangs."""

from __future__ import annotations

import pwd
import threading

_PATIENCE = 0.2
_MOST = 4096


class UserNames:
    """uid → name; the number as a text while the name is not known.

    A lookup may hang in a directory service's client: it is made in a thread, waited for `_PATIENCE` seconds once, and
    as long as it has not come back no other one is begun.
    """

    def __init__(self) -> None:
        self._known: dict[int, str] = {}
        self._thread: threading.Thread | None = None

    def __call__(self, uid: int) -> str:
        """Return the name of a user."""
        if uid not in self._known and (self._thread is None or not self._thread.is_alive()):
            if len(self._known) >= _MOST:
                self._known.clear()
            self._thread = threading.Thread(target=self._look_up, args=(uid,), daemon=True, name="user-name")
            self._thread.start()
            self._thread.join(_PATIENCE)
        return self._known.get(uid, str(uid))

    def _look_up(self, uid: int) -> None:
        try:
            self._known[uid] = pwd.getpwuid(uid).pw_name
        except KeyError:
            self._known[uid] = str(uid)
