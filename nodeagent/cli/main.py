"""The command `gpu-nodeagent`: one module a subcommand, each imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

from nodeagent.errors import NodeAgentError

SUBCOMMANDS = {
    "run": "the agent itself: watch this node's GPUs until told to stop",
    "status": "what the agent knows: GPUs, verdicts, holders",
    "check": "look at the GPUs now, without the agent",
    "locks": "who holds which GPU; release or hold by hand",
    "history": "what became of the GPUs: verdicts, XIDs, what was done and by whom",
    "exec": "lock N GPUs, run a command on them, release",
    "retire": "grant a GPU to nobody until it is restored",
    "restore": "grant a retired GPU again",
    "release-driver": "let NVML go for a while, so that a GPU can be reset or its MIG mode changed",
    "drain": "take this node out of the scheduler",
    "resume": "give this node back to the scheduler",
    "maintenance": "on or off: for a while the agent takes nothing out and brings nothing back",
    "sge-sensor": "Grid Engine's load sensor",
    "discover": "what to tell the scheduler, ready to paste",
    "doctor": "what of this node's set-up is not as it should be, and what to type",
    "replay": "judge a recording of `check --record` anew, with this or another configuration",
    "config": "check, show or compile the configuration",
}
COMPLETE = "_complete"
"""The first word of the shell's own calls (cli/completion.py); no subcommand, and in no list of them."""


class Exit(IntEnum):
    """Exit statuses of the public contract (DESIGN section 6); 64 and above are those of sysexits.h."""

    OK = 0
    DEGRADED = 1
    FAILED = 2
    UNKNOWN = 3
    USAGE = 64
    UNAVAILABLE = 69
    SOFTWARE = 70
    NO_RIGHT = 77
    CONFIG = 78


STATE_EXIT = {"OK": Exit.OK, "DEGRADED": Exit.DEGRADED, "FAILED": Exit.FAILED, "UNKNOWN": Exit.UNKNOWN}


class _Parser(argparse.ArgumentParser):
    """Leaves with 64 on a mistake in the command line, as sysexits.h has it."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(Exit.USAGE, f"{self.prog}: {message}\n")


def parser_for(chosen: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the chosen subcommand's module is imported and describes itself in full."""
    from nodeagent.version import VERSION

    parser = _Parser(prog="gpu-nodeagent", description="Locks, watches and repairs the GPUs of this compute node.")
    parser.add_argument("--config", type=Path, metavar="PATH", help="configuration (/etc/gpu-nodeagent/config.yaml)")
    parser.add_argument("--version", action="version", version=f"gpu-nodeagent {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for name, help_text in SUBCOMMANDS.items():
        sub = commands.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
        config_anywhere(sub)
        if name == chosen:
            module = importlib.import_module(f"nodeagent.cli.{name.replace('-', '_')}_command")
            module.arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def config_anywhere(parser: argparse.ArgumentParser) -> None:
    """Let --config follow the subcommand or its action too; a value given before it is kept."""
    parser.add_argument("--config", type=Path, metavar="PATH", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if word in SUBCOMMANDS), None)
    try:
        if words[:1] == [COMPLETE]:
            from nodeagent.cli import completion

            status = completion.run(words[1:])
        else:
            options = parser_for(chosen).parse_args(words)
            status = int(options.run(options))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = int(Exit.OK)
    except KeyboardInterrupt:
        status = 130
    except Exception as error:  # noqa: BLE001  the command's boundary: our own error has a status of its own
        status = _report(error)
    return status


def _report(error: Exception) -> int:
    """Say what went wrong and return the status that the contract has for it."""
    if isinstance(error, NodeAgentError):
        complain(str(error))
        return error.exit_code
    if isinstance(error, PermissionError):
        complain(f"{error.filename or 'this'}: {error.strerror}; try as root, or with a state_dir of your own")
        return Exit.NO_RIGHT
    if isinstance(error, OSError):
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return Exit.UNAVAILABLE
    complain(
        "our own error, please report it: " + "".join(traceback.format_exception(None, error, error.__traceback__))
    )
    return Exit.SOFTWARE


def complain(words: str) -> None:
    """Say what is wrong, on standard error."""
    for line in words.splitlines():
        sys.stderr.write(f"gpu-nodeagent: {line}\n")


def say(words: str) -> None:
    """Print an answer, on standard output."""
    sys.stdout.write(f"{words}\n")


if __name__ == "__main__":
    sys.exit(main())
