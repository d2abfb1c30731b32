"""Whether this user can do with Slurm what the agent has to: reach the controller, be believed, drain this node."""

from __future__ import annotations

import os
from collections.abc import Iterator

from nodeagent.doctor.line import FAIL, OK, WARN, Line, Look
from nodeagent.errors import CommandFailed

NO_NODE = "gpu-nodeagent-doctor"
"""A name that no node has. The controller looks at who asks first, and only then for the node: so a request to resume
this one tells whether the right is there, and can change nothing. Measured with 22.05; the controller logs one line."""
_BIN = ("scontrol", "sinfo", "squeue")
_MAY = "Invalid node name"
_MAY_NOT = ("Invalid user id", "permission denied")
"""slurm.h's ESLURM_USER_ID_MISSING, which 22.05 answers, and ESLURM_ACCESS_DENIED, for which later ones have it."""
_UNBELIEVED = ("munge", "authentication", "credential")


def rights(look: Look) -> Iterator[Line]:
    """Yield a line a condition, up to the first that is not met: the others cannot be known then."""
    slurm = look.config.scheduler.slurm
    if look.config.scheduler.kind != "slurm":
        return
    paths = [*(f"{slurm.bin_dir}/{name}" for name in _BIN), f"{slurm.sbin_dir}/slurmd"]
    missing = [path for path in paths if not os.access(path, os.X_OK)]
    if missing:
        remedy = "install Slurm's clients, or set scheduler.slurm.bin_dir and sbin_dir"
        yield Line("slurm-commands", FAIL, f"not there, or not to be run: {' '.join(missing)}", remedy)
        return
    yield Line("slurm-commands", OK, f"{', '.join(_BIN)} and slurmd are there")
    controller = _controller(look)
    yield controller
    if controller.state != OK:
        return
    node = _node(look)
    yield node
    if node.state != FAIL:
        yield _update(look)


def _controller(look: Look) -> Line:
    name, scontrol = "slurm-controller", f"{look.config.scheduler.slurm.bin_dir}/scontrol"
    try:
        look.ask([scontrol, "ping"])
    except CommandFailed as error:
        said = error.output
        if any(word in said.lower() for word in _UNBELIEVED):
            why = next(
                (line for line in said.splitlines() if "munge" in line.lower() and "failed" in line.lower()), said
            )
            remedy = "systemctl restart munge; `munge -n | unmunge` here; the key and the clock as on the controller"
            return Line(name, FAIL, f"this node cannot prove who it is: {_line(why)}", remedy)
        if " is UP" not in said:  # else a second controller answers
            remedy = "systemctl status slurmctld, on the controller; scheduler.slurm.conf, if this is another cluster's"
            return Line(name, FAIL, f"it does not answer: {_line(said) or error}", remedy)
    return Line(name, OK, "it answers, and believes who asks")


def _node(look: Look) -> Line:
    name, sinfo = "slurm-node", f"{look.config.scheduler.slurm.bin_dir}/sinfo"
    try:
        state = look.ask([sinfo, "-N", "-h", "-a", "-n", look.node, "-o", "%T"]).split()
    except CommandFailed as error:
        return Line(name, WARN, f"not known: {error}", "make this command work on this node")
    if not state:
        return Line(name, FAIL, f"no node {look.node!r} is known", "set node_name to its NodeName in slurm.conf")
    return Line(name, OK, f"{look.node} is known ({state[0]})")


def _update(look: Look) -> Line:
    name, scontrol = "slurm-drain-right", f"{look.config.scheduler.slurm.bin_dir}/scontrol"
    try:
        look.ask([scontrol, "update", f"nodename={NO_NODE}", "state=resume"])
    except CommandFailed as error:
        if _MAY in error.output:
            return Line(name, OK, f"{look.user} may drain and resume nodes")
        if any(words in error.output for words in _MAY_NOT):
            remedy = "run the agent as root; or, with slurmdbd: sacctmgr modify user name={} set adminlevel=Admin"
            return Line(name, FAIL, f"{look.user} may not drain or resume nodes", remedy.format(look.user))
        return Line(name, WARN, f"not known: {error}", "make `scontrol update` work on this node")
    return Line(name, WARN, f"not known: a node {NO_NODE} was accepted", f"give no node the name {NO_NODE}")


def _line(words: str) -> str:
    return " ".join(words.replace("*", "").split())[:200]
