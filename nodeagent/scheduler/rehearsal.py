"""A rehearsal: what a scheduler would be told, word for word, and nobody tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nodeagent.scheduler.command import Runner, run

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
