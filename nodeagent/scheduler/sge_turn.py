"""Grid Engine: whose turn it is to count and drain, and who was drained lately, as checkpointing interfaces.

The qmaster adds no second object of a name. A checkpointing interface that no queue lists is nobody's but ours, and has
room for a word: a token, random, of one turn. Nothing ends by itself there, so the turn of a holder that died has to be
passed on, and by one only. An object that was seen with the same token for as long as a turn lasts is a dead one's: its
successor is who adds the object `TURN-TOKEN`, of which there is never a second, and so on from token to token. No two
clocks are compared. Who gives back removes the first object first: from then on the chain begins anew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nodeagent.errors import CommandFailed
from nodeagent.scheduler.turn import NotOurTurn, Turn

TURN = "gpu-nodeagent-turn"
DRAINED = "gpu-nodeagent-drained-"
_MOST_SWEPT = 2
_NONE = ("no ckpt interface definition", "is not a checkpointing interface", "does not exist")
_OBJECT = """\
ckpt_name {name}
interface userdefined
ckpt_command {word}
migr_command none
restart_command none
clean_command none
ckpt_dir /tmp
signal none
when xsm
"""


class Seen:
    """Since when each token has been seen, by the clock of who looks; kept from one try to the next."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def for_long(self, token: str, now: float, length: float) -> bool:
        """Note that a token stands now; say whether it was first seen longer ago than a turn lasts."""
        self._since = {one: since for one, since in self._since.items() if now - since < 10 * length}
        return now - self._since.setdefault(token, now) > length


class SgeTurn(Turn):
    """See Turn. `qconf` runs that command; a drain is noted for `window` seconds, 0: not at all."""

    def __init__(
        self,
        qconf: Callable[..., str],
        host: str,
        window: float,
        timeout: float,
        seen: Seen,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(timeout, monotonic)
        self._qconf = qconf
        self._host = host
        self._window = window
        self._seen = seen
        self._chain: list[str] = []

    def _take(self) -> None:
        token = os.urandom(8).hex()
        self._chain = [TURN]
        while not self._add(self._chain[-1], token):
            holder = self._token_of(self._chain[-1])
            if not holder or not self._seen.for_long(holder, self._monotonic(), self.length):
                raise NotOurTurn("another host counts and drains at this moment")
            self._chain.append(f"{TURN}-{holder}")

    def _give_back(self) -> None:
        for name in self._chain:
            self._remove(name)

    def _note(self) -> None:
        if not self._window:
            return
        now = time.time()
        self._add(f"{DRAINED}{int(now + self._window)}-{self._host}", "none")
        over = [name for name, (_, until) in _noted(self._qconf).items() if until < now]
        for name in over[:_MOST_SWEPT]:
            self._remove(name)

    def _add(self, name: str, word: str) -> bool:
        """Add an object; False if one of that name is there."""
        with _file(_OBJECT.format(name=name, word=word)) as path:
            try:
                self._qconf("-Ackpt", path)
            except CommandFailed as error:
                if "already exists" in error.output:
                    return False
                raise
        return True

    def _token_of(self, name: str) -> str:
        """Return the word in an object; empty if it is gone."""
        try:
            lines = self._qconf("-sckpt", name).splitlines()
        except CommandFailed as error:
            if any(words in error.output for words in _NONE):
                return ""
            raise
        return next((line.split()[1] for line in lines if line.startswith("ckpt_command ")), "")

    def _remove(self, name: str) -> None:
        try:
            self._qconf("-dckpt", name)
        except CommandFailed as error:
            if not any(words in error.output for words in _NONE):
                raise


def lately_drained(qconf: Callable[..., str], window: float) -> set[str]:
    """Return the hosts whose drain was noted less than `window` seconds ago, by the clocks of the hosts."""
    now = time.time()
    return {host for host, until in _noted(qconf).values() if until >= now} if window else set()


def _noted(qconf: Callable[..., str]) -> dict[str, tuple[str, float]]:
    """Return object → (host, seconds since 1970 until when it counts)."""
    try:
        names = qconf("-sckptl").split()
    except CommandFailed as error:
        if any(words in error.output for words in _NONE):
            return {}
        raise
    found = {}
    for name in names:
        until, _, host = name[len(DRAINED) :].partition("-")
        if name.startswith(DRAINED) and until.isdigit():
            found[name] = (host, float(until))
    return found


@contextmanager
def _file(text: str) -> Iterator[str]:
    """Give a text as a path that our own child can read, on no disk: that may be full, or what is dying."""
    handle = os.memfd_create("gpu-nodeagent")
    try:
        os.write(handle, text.encode())
        yield f"/proc/{os.getpid()}/fd/{handle}"
    finally:
        os.close(handle)
