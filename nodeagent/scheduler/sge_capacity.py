"""What an exec host offers of the GPU complex: one entry of its `complex_values`, read and set through qconf."""

from __future__ import annotations

import re

from nodeagent.config.model import Config
from nodeagent.errors import CommandFailed
from nodeagent.scheduler.command import Runner, run
from nodeagent.scheduler.sge import sge_environment


class SgeCapacity:
    """The entry of one host. Setting it takes the rights of a manager, which root on an admin host has."""

    def __init__(self, config: Config, node: str, runner: Runner = run) -> None:
        self._sge = config.scheduler.sge
        self._timeout = config.scheduler.command_timeout
        self._node = node
        self._runner = runner

    def offered(self) -> int | None:
        """Return how many the host offers; None where its complex_values do not name the complex."""
        return parse_offer(self._qconf("-se", self._node), self._sge.complex)

    def offer(self, count: int) -> None:
        """Have the host offer so many. Jobs that run keep what they have: what is left may be negative then."""
        self._qconf("-mattr", "exechost", "complex_values", f"{self._sge.complex}={count}", self._node)

    def _qconf(self, *arguments: str) -> str:
        argv = (f"{self._sge.bin_dir}/qconf", *arguments)
        return self._runner(argv, sge_environment(self._sge), self._timeout)


def parse_offer(said: str, name: str) -> int | None:
    r"""Return a complex's value in `complex_values gpu=4,slots=8` as `qconf -se` writes it, `\` before line ends.

    Raises:
        CommandFailed: it is there, and is not a whole number.

    """
    for line in re.sub(r"\\\n\s*", "", said).splitlines():
        key, _, values = line.partition(" ")
        if key == "complex_values":
            for entry in values.strip().split(","):
                complex_name, _, value = entry.strip().partition("=")
                if complex_name == name:
                    return _whole(value)
    return None


def _whole(value: str) -> int:
    match = re.fullmatch(r"(\d{1,9})(\.0*)?", value)
    if match is None:
        raise CommandFailed(("qconf", "-se"), 0, f"{value!r} is not a number of GPUs")
    return int(match.group(1))
