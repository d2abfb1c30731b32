"""Why a scheduler's command failed, by what it said, and what a person can do about it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from nodeagent.errors import CommandFailed, NodeAgentError

MISSING, PERMISSION, AUTHENTICATION, UNKNOWN_NODE = "missing", "permission", "authentication", "unknown-node"
CONFIGURATION, UNREACHABLE, SILENT, OTHER = "configuration", "unreachable", "silent", "other"


@dataclass(frozen=True)
class Trouble:
    """`kind` is one of this module's words, `remedy` one clause for a person."""

    kind: str
    remedy: str


_REMEDIES = {
    MISSING: "the command is not there: install it, or set scheduler.slurm.bin_dir or scheduler.sge.bin_dir",
    PERMISSION: "it is refused: Slurm wants root or SlurmUser, Grid Engine an operator or manager on an admin host",
    AUTHENTICATION: "munge does not vouch for us: is munged running here, with the cluster's key and the right time?",
    UNKNOWN_NODE: "the scheduler knows no such node: set node_name to the name that it has there",
    CONFIGURATION: "it does not find the cluster: set scheduler.slurm.conf, or scheduler.sge.root and .cell",
    UNREACHABLE: "the controller cannot be reached: is slurmctld or sge_qmaster running, and its port open from here?",
    SILENT: "no answer in scheduler.command_timeout: the controller, or munged here, hangs or is overloaded",
    OTHER: "see what it said",
}

_SAID = (
    # The first that is found counts: a munge that fails is followed by words about the network, a configuration that
    # is not found by words about hosts.
    (AUTHENTICATION, ("munge encode", "authentication error", "invalid credential", "invalid authentication")),
    (PERMISSION, ("invalid user id", "permission denied", "no permission", "must be", "is neither submit nor admin")),
    (CONFIGURATION, ("configuration source", "configuration file", "clustername", "sge_root", "cell directory")),
    (UNKNOWN_NODE, ("invalid node name", "not found", "no node ", "unknown host")),
    (SILENT, ("timed out", "timeout")),
    (UNREACHABLE, ("unable to contact", "connection refused", "got send error", "commlib error", "zero bytes")),
)
_NOT_FOUND = 127


def diagnose(error: NodeAgentError) -> Trouble:
    """Return what the trouble is: by the exit status where that says it, else by the words of Slurm and Grid Engine."""
    kind = OTHER
    if isinstance(error, CommandFailed):
        said = error.output.lower()
        if error.status == _NOT_FOUND:
            kind = MISSING
        else:  # what has not ended in time may have said why before that
            told = (kind for kind, words in _SAID if any(word in said for word in words))
            kind = next(told, SILENT if error.status is None else OTHER)
    return Trouble(kind, _REMEDIES[kind])
