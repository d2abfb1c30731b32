"""A line of `gpu-nodeagent doctor`, and what the checks that write such lines may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nodeagent.config.model import Config
from nodeagent.isolation.method import Method

OK, WARN, FAIL = "ok", "warn", "fail"
STATES = (OK, WARN, FAIL)
"""From well to bad: `warn` works, but not as it could; `fail` keeps jobs from running, or from running safely."""


@dataclass(frozen=True)
class Line:
    """What one check found: its name, a state, the evidence, and what to type (empty where all is well)."""

    name: str
    state: str
    evidence: str
    remedy: str = ""


@dataclass(frozen=True)
class Look:
    """What checks look at.

    `starter` is the process that starts jobs here (the exec daemon, or this command), `starter_name` its name for
    people. `constrains_devices` asks Slurm, and may raise CommandFailed; `methods` are the ways of isolation,
    `root` says whether this command may look at what is root's. `node` is this node's name in the scheduler, `user`
    whom this command runs as; `ask` runs one of the scheduler's commands and returns what it prints, or raises
    CommandFailed: only to be given what changes nothing. `no_holder` asks Slurm why no job may hold a GPU, and what to
    do about it (both empty: one may); it may raise CommandFailed.
    """

    config: Config
    starter: int
    starter_name: str
    constrains_devices: Callable[[], bool]
    methods: Mapping[str, Method]
    root: bool
    node: str
    user: str
    ask: Callable[[Sequence[str]], str]
    no_holder: Callable[[], tuple[str, str]] = lambda: ("", "")


Check = Callable[[Look], Iterable[Line]]
