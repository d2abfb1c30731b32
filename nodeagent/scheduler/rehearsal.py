"""A rehearsal: what a scheduler would be told, word for word, and nobody tells it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from nodeagent.scheduler.command import Asked, Runner, run

_QUESTIONS = ("sinfo", "squeue", "qselect", "qstat", "qhost", "find", "ls")
_ASKS_BY = {"scontrol": ("show", "ping"), "slurmd": ("-G", "-C"), "qconf": ("-s",)}
"""Programs that ask with some words only: the first word, or of `qconf` how it begins."""


class Rehearsal:
    """A Runner that puts questions to the scheduler, and keeps everything else for itself.

    What is not known to be a question is not asked: a command that is new here is told of rather than run. `told` is
    what was kept, in order; each of these commands seems to have succeeded without a word.
    """

    def __init__(self, runner: Runner = run) -> None:
        self.told: list[tuple[str, ...]] = []
        self._runner = runner

    def __call__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        timeout: float = 5.0,
        complaints: bool = False,
    ) -> str:
        """See Runner."""
        if is_question(argv):
            return self._runner(argv, environment, timeout, complaints)
        self.told.append(tuple(argv))
        return _seems(argv)

    def converse(
        self, argv: Sequence[str], prompt: str, environment: Mapping[str, str] | None = None, timeout: float = 5.0
    ) -> AbstractContextManager[Asked]:
        """See Converse: each line is a command of its own; after a change the node seems to be as it was told to be."""
        return _Rehearsed(self, argv, environment, timeout)


class _Rehearsed(AbstractContextManager[Asked]):
    def __init__(
        self, rehearsal: Rehearsal, argv: Sequence[str], environment: Mapping[str, str] | None, timeout: float
    ) -> None:
        self._rehearsal = rehearsal
        self._argv = argv
        self._environment = environment
        self._timeout = timeout
        self._after = ""

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was begun."""

    def ask(self, *lines: str) -> list[str]:
        return [self._answer(tuple(shlex.split(line))) for line in lines]

    def complaints(self) -> str:
        return ""

    def _answer(self, words: tuple[str, ...]) -> str:
        argv = (*self._argv, *words)
        if self._after and is_question(argv):
            return self._after
        said = self._rehearsal(argv, self._environment, self._timeout)
        if not is_question(argv):
            reason = next((word.partition("=")[2] for word in words if word.startswith("reason=")), "")
            drained = f"   State=IDLE+DRAIN\n   Reason={reason} [root@now]\n"
            self._after = drained if "state=drain" in words else "   State=IDLE\n"
        return said


def _seems(argv: Sequence[str]) -> str:
    """Return what a command says that has succeeded, where its answer is read."""
    if re.search(r"(^|/)qmod$", argv[0]) and "-d" in argv:
        return "".join(f'changed state of "{queue}" (disabled)\n' for queue in argv if "@" in queue)
    return ""


def is_question(argv: Sequence[str]) -> bool:
    """Say whether a command is known to change nothing."""
    program, words = argv[0].rpartition("/")[2], argv[1:]
    if program in _QUESTIONS:
        return True
    asks = _ASKS_BY.get(program, ())
    if program == "scontrol":
        words = [word for word in words if not word.startswith("-")]
    first = words[0] if words else ""
    return first.startswith(asks) if program == "qconf" else first in asks
