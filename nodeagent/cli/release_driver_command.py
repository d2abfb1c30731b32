"""`gpu-nodeagent release-driver`: the agent lets NVML go for a while, so that a GPU can be reset."""

from __future__ import annotations

import argparse
import errno
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nodeagent.agent.lending import LONGEST, RELEASE_DRIVER
from nodeagent.cli.context import loaded, open_state, status_of
from nodeagent.cli.login import login
from nodeagent.cli.main import Exit, complain, say
from nodeagent.config.model import Config
from nodeagent.config.values import positive_duration
from nodeagent.errors import AgentSilent
from nodeagent.gpu.probe import PATIENCE, RELEASE_TIMEOUT
from nodeagent.lock.cleaning import EVENTS, open_attendant, wake
from nodeagent.state import events
from nodeagent.state.documents import SNAPSHOT, read_document
from nodeagent.state.files import Directory

Said = dict[str, Any]
"""What the agent has published."""
_DEFAULT = 120.0
_LOOK = 0.05
"""Seconds between two looks at what the agent says."""
_SLACK = 5.0
"""Seconds that the agent may take for all but a sweep and letting go."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--for",
        dest="seconds",
        type=_duration,
        default=_DEFAULT,
        metavar="TIME",
        help=f"for so long (2m; at most {LONGEST / 60:g}m); said again, so long from then on",
    )
    how.add_argument("--back", action="store_true", help="the agent may look at the GPUs again, at once")


def _duration(word: str) -> float:
    try:
        seconds = positive_duration(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{word!r} {error}") from error
    if seconds > LONGEST:
        raise argparse.ArgumentTypeError(f"{word!r} is more than {LONGEST / 60:g}m; stop the agent for longer work")
    return seconds


def run(options: argparse.Namespace) -> int:
    """Have the agent let go, or look again; exit 1 if a process of its own cannot be made to.

    Without an agent there is nothing to let go: exit 0, for a script that goes on to a reset.
    """
    config = loaded(options).config
    try:
        state = open_state(config)
    except FileNotFoundError:
        return _nobody(config.state_dir, options.back)
    if os.geteuid() not in (0, os.fstat(state.fd).st_uid):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), state.path)
    before = status_of(config, state)
    attendant = open_attendant(state)
    if attendant < 0:
        if before["agent"]["fresh"] and _lives(before["agent"]["pid"]):
            raise AgentSilent(state.path, "the agent runs and does not listen")
        return _nobody(state.path, options.back)
    asked = Asked(state, config, time.monotonic(), secrets.token_hex(8))
    _tell(state, attendant, asked.request, 0.0 if options.back else options.seconds)
    if options.back:
        asked.wait(lambda said: said["monotonic"] > asked.at and not said.get("driver_released"))
        was = before["driver_released"] is not None
        say("the agent has looked at the GPUs again" if was else "the driver was not released: the agent has looked")
        return Exit.OK
    return _report(asked.wait(asked.is_free, asked.is_heard)["driver_released"])


@dataclass(frozen=True)
class Asked:
    """A request to the agent, made `at` (monotonic seconds), and the wait for what it says in its snapshot."""

    state: Directory
    config: Config
    at: float
    request: str

    def is_heard(self, said: Said) -> bool:
        """Say whether the agent has let go on this request."""
        released = said.get("driver_released")
        return released is not None and released["request"] == self.request

    def is_free(self, said: Said) -> bool:
        """Say whether none of its processes has the driver open any more."""
        return self.is_heard(said) and not said["driver_released"]["still_open"]

    def wait(self, enough: Callable[[Said], bool], little: Callable[[Said], bool] = lambda _: False) -> Said:
        """Return what the agent says when it is `enough`, or in the end `little`.

        Raises:
            AgentSilent: it said nothing of the kind, in the time that a sweep can take and then some.

        """
        patience = PATIENCE * self.config.probe_timeout + RELEASE_TIMEOUT + _SLACK
        while True:
            said = read_document(self.state, SNAPSHOT) or {"monotonic": 0.0}
            late = time.monotonic() - self.at > patience
            if enough(said) or (late and little(said)):
                return said
            if late:
                raise AgentSilent(self.state.path, f"the agent has not answered within {patience:g} s")
            time.sleep(_LOOK)


def _report(released: Said) -> int:
    if not released["kernel_log"]:
        complain("the kernel log cannot be read: XIDs of this time will be missed")
    if released["still_open"]:
        complain(
            f"{released['still_open']} processes of the agent's cannot be ended (state D) and may have the driver open:"
            " a reset will be refused; reboot the node"
        )
        return Exit.DEGRADED
    say(
        f"released until {released['until']}: no process of the agent's has NVML or a /dev/nvidia* file open.\n"
        "Until then it looks at no GPU. Verdicts stay as they are, but for XIDs in the kernel log; jobs are started as"
        " before:\na GPU that is to be reset has to be retired or held. Earlier: gpu-nodeagent release-driver --back"
    )
    return Exit.OK


def _nobody(place: str, back: bool) -> int:
    if back:
        raise AgentSilent(place, "no agent runs that could look again")
    say("no agent runs on this node: there is nothing to release; one that is started opens the driver at once")
    return Exit.OK


def _lives(pid: int | None) -> bool:
    return pid is not None and os.path.exists(f"/proc/{pid}")


def _tell(state: Directory, attendant: int, request: str, seconds: float) -> None:
    if not events.append(state, RELEASE_DRIVER, request=request, by=login(), seconds=f"{seconds:g}"):
        os.close(attendant)
        raise AgentSilent(state.path, "the agent could not be told (is the state directory full?)")
    wake(attendant, EVENTS)
