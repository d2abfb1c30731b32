"""One site driver set by version, such as /mynvdriver/v{version}, as a bind list for containers."""

from __future__ import annotations

import re

from nodeagent.config.model import Drivers
from nodeagent.errors import CommandFailed
from nodeagent.scheduler.command import Runner, run

_VERSION = re.compile(r"\d+(\.\d+){1,3}")


def bind_list(drivers: Drivers, version: str, runner: Runner = run) -> str:
    """Return `SRC:DST:ro,…` for the running driver's version; empty when there is no set, no version or no such path.

    A set with `bin` and `lib` in it is bound part by part, a flat one as a whole at both places. The path may lie on
    a network: it is looked at by another process that is given up after `drivers.timeout`, because a dead server
    would hang this one. Only what exists is named: one missing bind source is fatal for the container.

    Raises:
        CommandFailed: no answer in time; the process that was given up may hang for as long as the server does.

    """
    if not drivers.path or not _VERSION.fullmatch(version):
        return ""
    top = drivers.path.format(version=version)
    try:
        # `find` prints what it reaches and is silent about -maxdepth children that are not there
        said = runner(
            ("/usr/bin/find", "-H", top, "-maxdepth", "1", "-name", "bin", "-print", "-o", "-name", "lib", "-print"),
            timeout=drivers.timeout,
        )
    except CommandFailed as error:
        if error.status is None:
            raise
        return ""
    parts = set(said.splitlines())
    pairs = [(f"{top}/bin", drivers.bin), (f"{top}/lib", drivers.lib)]
    if not all(source in parts for source, _ in pairs):
        pairs = [(top, drivers.bin), (top, drivers.lib)]
    return ",".join(f"{source}:{target}:ro" for source, target in pairs)
