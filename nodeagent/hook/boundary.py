"""The boundary of every hook: whatever goes wrong inside, the scheduler gets the status that the contract names. Lean.

A hook's bug must neither drain a healthy node nor put a queue in error state, so errors end here: told to the
administrator, recorded when there is where, and turned into the outcome for "our own bug".
"""

import os
import sys

from nodeagent.errors import NodeAgentError
from nodeagent.hook.node import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Hook = Callable[[Sequence[str], Mapping[str, str]], int]

SGE_RERUN = 99
SGE_USER_ERROR = 100


def guarded(name: str, on_error: int = 0, as_user: bool = False) -> "Callable[[Hook], Hook]":
    """Wrap a hook: `on_error` is its status after an error of ours, `as_user` says that it runs as the job's owner."""

    def wrap(hook: "Hook") -> "Hook":
        def run(arguments: "Sequence[str]", environ: "Mapping[str, str]") -> int:
            try:
                return hook(arguments, environ)
            except Exception as error:  # noqa: BLE001  a hook's boundary: see the module's first lines
                return 0 if as_user else _report(name, error, on_error)

        return run

    return wrap


def _report(name: str, error: Exception, status: int) -> int:
    words = f"{name}: {error if isinstance(error, (NodeAgentError, OSError)) else repr(error)}"
    try:
        complain(words)
        if name.startswith("slurm"):  # goes to slurmd's log; Grid Engine would put it into the user's output
            os.write(2, f"gpu-nodeagent: {words}\n".encode("utf-8", "replace"))
    except OSError:
        pass
    return status


def main(hook: "Hook") -> None:
    """Run a hook as this process: its status is the process's, and nothing else is."""
    os.umask(0o022)  # the scheduler's own may be tighter, and users' commands read what is made here
    status = hook(sys.argv[1:], os.environ)
    os._exit(status)
