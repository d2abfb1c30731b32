"""Whether this user can do with Grid Engine what the agent has to, and whether the load sensor is heard."""

from __future__ import annotations

import os
from collections.abc import Iterator

from nodeagent.config.compile import bootstrap_admin_user
from nodeagent.doctor.line import FAIL, OK, WARN, Line, Look
from nodeagent.errors import CommandFailed

_PROGRAMS = ("qconf", "qhost", "qmod", "qselect")
_SENSOR = "/usr/libexec/gpu-nodeagent/sge-sensor"
_TELLS = ("gpu_faulty", "gpu_reason")
_HARMLESS = ("root", "none", "")


def rights(look: Look) -> Iterator[Line]:
    """Yield a line a condition, up to the first without which the others cannot be known."""
    if look.config.scheduler.kind != "sge":
        return
    place = look.config.scheduler.sge.bin_dir
    missing = [f"{place}/{name}" for name in _PROGRAMS if not os.access(f"{place}/{name}", os.X_OK)]
    if missing:
        remedy = "install Grid Engine's clients, or set scheduler.sge.bin_dir"
        yield Line("sge-commands", FAIL, f"not there, or not to be run: {' '.join(missing)}", remedy)
        return
    yield Line("sge-commands", OK, f"{', '.join(_PROGRAMS)} are there")
    try:
        admin_hosts = _list(look, "-sh")
        yield Line("sge-qmaster", OK, "it answers")
        yield from _hosts(look, admin_hosts)
        yield _manager(look)
    except CommandFailed as error:
        remedy = (
            "is sge_qmaster up? then scheduler.sge: root, cell, qmaster_port; what is in root/cell/common/act_qmaster"
        )
        yield Line("sge-qmaster", FAIL, f"it does not answer: {error}", remedy)


def _hosts(look: Look, admin_hosts: list[str]) -> Iterator[Line]:
    node = look.node
    if node in admin_hosts:
        yield Line("sge-admin-host", OK, f"{node} is one: its exec daemon may register, and managers may work from it")
    else:
        why = f"{node} is none: its exec daemon cannot register, and a drain from here is refused"
        yield Line("sge-admin-host", FAIL, why, f"on the qmaster: qconf -ah {node}; or set node_name")
    try:
        queues = _ask(look, "qselect", "-q", f"*@{node}").split()
    except CommandFailed as error:
        if error.status != 1 or error.output:
            raise
        queues = []
    if queues:
        yield Line("sge-queues", OK, f"{node} has {' '.join(queues)}")
    else:
        remedy = "set node_name to its name in `qconf -sel`, or give it a queue: qconf -mq"
        yield Line("sge-queues", WARN, f"no queue has an instance on {node}: there is nothing to drain", remedy)


def _manager(look: Look) -> Line:
    """Return whether a drain is allowed, by the lists: there is no `qmod` that is harmless and would tell."""
    name = "sge-drain-right"
    for word, option in (("manager", "-sm"), ("operator", "-so")):
        if look.user in _list(look, option):
            return Line(name, OK, f"{look.user} is {word}: it may disable and enable queue instances")
    remedy = f"run the agent as root; or qconf -ao {look.user}; or leave it: the load sensor needs no right"
    return Line(name, WARN, f"{look.user} is neither manager nor operator: a drain of the host is refused", remedy)


def load_sensor(look: Look) -> Iterator[Line]:
    """Whether Grid Engine hears which GPUs are out: for that nobody needs any right."""
    if look.config.scheduler.kind != "sge":
        return
    name, node = "sge-load-sensor", look.node
    try:
        sensor = _setting(look, node) or _setting(look)
        undefined = [word for word in _TELLS if word not in _list(look, "-sc")]
        told = [line.strip() for line in _ask(look, "qhost", "-F", "-h", node).splitlines()]
    except CommandFailed as error:
        yield Line(name, WARN, f"not known: {error}", "see sge-qmaster")
        return
    if sensor.lower() in ("", "none"):
        why = "there is none: Grid Engine does not hear which GPUs are out, only prologs refuse them"
        yield Line(name, WARN, why, f"qconf -mconf {node}: load_sensor {_SENSOR}")
    elif undefined:
        remedy = "gpu-nodeagent discover sge prints them; then qconf -mc"
        yield Line(name, FAIL, f"what it tells is not defined: {' '.join(undefined)}", remedy)
    elif not any(line.startswith(f"hl:{_TELLS[0]}=") for line in told):
        remedy = (
            f"run it by hand: `echo | {sensor}`; is it executable, and sge_execd up? A new one is heard after a while"
        )
        yield Line(name, FAIL, f"{sensor} is set, and nothing of it is heard", remedy)
    else:
        values = " ".join(line for line in told if line.partition("=")[0].partition(":")[2] in _TELLS)
        yield Line(name, OK, f"{sensor} is heard: {values}")


def admin_user(look: Look) -> Iterator[Line]:
    """Whether interactive jobs survive a prolog: they do not, where the daemons work as another user than root."""
    if look.config.scheduler.kind != "sge":
        return
    sge = look.config.scheduler.sge
    name = bootstrap_admin_user(sge.root, sge.cell)
    if name in _HARMLESS:
        yield Line("sge-admin-user", OK, f"admin_user is {name or 'not set'}")
    else:
        why = f"admin_user is {name}: with a prolog or an epilog qrsh and qlogin put their queue into state E"
        remedy = (
            f"admin_user root in {sge.root}/{sge.cell}/common/bootstrap, then restart the daemons; or `qrsh -pty n`"
        )
        yield Line("sge-admin-user", WARN, why, remedy)


def _ask(look: Look, program: str, *words: str) -> str:
    return look.ask([f"{look.config.scheduler.sge.bin_dir}/{program}", *words])


def _list(look: Look, option: str) -> list[str]:
    """Return the first words of a list of qconf's; one that has nothing in it is an error for qconf."""
    try:
        said = _ask(look, "qconf", option)
    except CommandFailed as error:
        if "defined" in error.output:
            return []
        raise
    return [line.split()[0] for line in said.splitlines() if line.strip()]


def _setting(look: Look, *host: str) -> str:
    """Return the load sensor in a host's own configuration, or in the global one; empty for none."""
    try:
        said = _ask(look, "qconf", "-sconf", *host)
    except CommandFailed as error:
        if host and "not defined" in error.output:
            return ""
        raise
    found = [line.split(None, 1)[1].strip() for line in said.splitlines() if line.startswith("load_sensor ")]
    return found[0] if found else ""
