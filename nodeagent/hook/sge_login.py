"""Login shells of qlogin and qrsh, which Grid Engine starts without the job's environment. Lean.

Each job's processes carry a group id of its own, and the job's spool directory names it: so a shell's profile finds
its job, and reads from the job's environment what the prolog wrote there. It runs as the user and only reads.
"""

import os

from nodeagent.errors import NodeAgentError
from nodeagent.hook.emit import BIND_VARIABLES, gpu_environment
from nodeagent.hook.node import config_path, state_dir
from nodeagent.state.boot import read_start
from nodeagent.state.files import Directory, decode_pairs, encode_pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SPOOL = "sge-spool"
_NAMES = frozenset([*(name for name, _ in gpu_environment("")), *BIND_VARIABLES])


def remember_spool(state: Directory, spool: str) -> None:
    """Leave word of where the exec daemon's spool directory is, unless it is known already."""
    try:
        if _known_spool(state) == spool:
            return
    except (NodeAgentError, OSError):
        pass
    try:
        state.replace(SPOOL, encode_pairs([("spool", spool)]))
    except OSError:
        pass  # login shells are not worth a job


def _known_spool(state: Directory) -> str:
    return decode_pairs(SPOOL, state.read(SPOOL)).get("spool", "")


def in_job(proc: str, pid: int) -> bool:
    """Say whether a shepherd is above this process, so that other logins ask nothing of a spool on a file server."""
    while pid > 1:
        try:
            words = read_start(f"{proc}/{pid}/stat").decode("utf-8", "replace")
        except OSError:
            return False  # /proc hides other users' processes: see docs/grid-engine.md
        if words.partition("(")[2].startswith("sge_shepherd"):
            return True
        pid = int(words.rpartition(")")[2].split()[1])
    return False


def run_login(arguments: "Sequence[str]", groups: "Sequence[int]", uid: int) -> str:
    """Return the commands for sh (for csh after the word `csh`) that set what the shell's job has; empty outside jobs.

    Raises:
        NodeAgentError, OSError: this node is not set up, or cannot be read.

    """
    csh = list(arguments[:1]) == ["csh"]
    state = Directory(state_dir(config_path(arguments[int(csh) :])))
    for place in _places(f"{_known_spool(state)}/active_jobs"):
        if _is_mine(place, groups, uid):
            return "".join(_command(name, value, csh) for name, value in _variables(place).items())
    return ""


def _places(active: str) -> "Iterator[str]":
    """Yield the spool directory of each job, and of each of its slave tasks, which have a group of their own."""
    for job in os.listdir(active):
        yield f"{active}/{job}"
        try:
            tasks = [name for name in os.listdir(f"{active}/{job}") if "." in name]
        except OSError:  # it has just ended
            continue
        for task in tasks:
            yield f"{active}/{job}/{task}"


def _is_mine(place: str, groups: "Sequence[int]", uid: int) -> bool:
    """Say whether the job's group is among these, and the job the user's: another's group may have the same number."""
    try:
        return int(_read(f"{place}/addgrpid")) in groups and os.stat(f"{place}/error").st_uid == uid
    except (OSError, ValueError):
        return False


def _variables(place: str) -> "dict[str, str]":
    """Return ours of the job's variables; the last line of a name wins, as for the job itself."""
    pairs = (line.partition("=") for line in _read(f"{place}/environment").split("\n"))
    return {name: value for name, _, value in pairs if name in _NAMES and value.isprintable()}


def _command(name: str, value: str, csh: bool) -> str:
    quoted = value.replace("'", "'\\''")
    if csh:
        quoted = quoted.replace("!", "\\!")
        return f"setenv {name} '{quoted}';\n"
    return f"export {name}='{quoted}'\n"


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
