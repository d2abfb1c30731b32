"""infiniband: a port is down, loses its link again and again, or fewer are up than the node is to have.

Source: state, rate and the counter of lost links of each port (/sys/class/infiniband). Nodes without such ports, and
ports that were never active in this boot, are well: many adapters have one without a cable.
Threshold: a port that was active is not for `health.infiniband.down` (4 min) of `health.sustained.window` (10 min);
more than `…flaps_per_hour` (2) lost links within an hour; fewer than `…ports` (0: not checked) active ones of at least
`…rate` Gbit/s (0: any) for the same time. gpud's: 4 minutes, 3 times.
Severity: ERROR on the node for fewer than the site wants; WARNING for what only differs from earlier; UNKNOWN for ports
that give no answer.
Action: reboot_node for fewer than wanted, since jobs over several nodes fail here (cable and switch are to be looked
at, too); inspect_hardware for the others.
Clears: the ports are up; an hour with fewer lost links.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nodeagent.config.model import Health
from nodeagent.gpu.host import Port
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene
from nodeagent.health.series import NodeSeries, hour, of_series, window_length
from nodeagent.health.window import MINUTE, Windows

NAME = "infiniband"
DOWN, FLAPS, FEW = f"{NAME}:down", f"{NAME}:flaps", f"{NAME}:few"
ACTIVE = (4, 5)
"""Port states: active, active and about to be changed (InfiniBand specification, PortState)."""


def _is_active(port: Port) -> bool:
    return port.state in ACTIVE


def _good(scene: Scene, settings: Health) -> int:
    """How many ports are as the site wants them."""
    rate = settings.infiniband.rate
    return sum(_is_active(port) and (port.rate or 0.0) >= rate for port in scene.facts.ports)


def _down(scene: Scene, known: Windows, settings: Health) -> Mapping[str, float]:
    if scene.facts.ports_silent:
        return {}
    states = {port.name: _is_active(port) for port in scene.facts.ports if port.state is not None}
    # one that has been active before, and is not there any more, is down
    return {name: float(not states.get(name, False)) for name in (*known, *states) if name in known or states[name]}


def _lost(scene: Scene, known: Windows, settings: Health) -> Mapping[str, float]:
    return {port.name: float(port.downed) for port in scene.facts.ports if port.downed is not None}


def _few(scene: Scene, known: Windows, settings: Health) -> Mapping[str, float]:
    if not settings.infiniband.ports or scene.facts.ports_silent or not scene.complete:
        return {}
    return {"node": float(_good(scene, settings) < settings.infiniband.ports)}


NODE_SERIES = {
    DOWN: NodeSeries(_down, window_length),
    FLAPS: NodeSeries(_lost, hour, counter=True),
    FEW: NodeSeries(_few, window_length),
}


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield what is wrong with the node's ports."""
    wanted, windows = settings.infiniband, scene.node.windows
    if scene.facts.ports_silent:
        yield Finding(NAME, "", Severity.UNKNOWN, "the InfiniBand ports give no answer: an adapter hangs")
    for window in of_series(windows, FEW).values():
        if window.value and window.amount >= wanted.down:
            rate = f" of at least {wanted.rate:g} Gbit/s" if wanted.rate else ""
            evidence = f"{_good(scene, settings)} of {wanted.ports} InfiniBand ports{rate} are active"
            yield Finding(NAME, "", Severity.ERROR, evidence, RecoveryAction.REBOOT_NODE)
    for name, window in of_series(windows, DOWN).items():
        if window.value and window.amount >= wanted.down:
            evidence = f"InfiniBand port {name} has been down for {window.amount / MINUTE:.0f} minutes; it was active"
            yield Finding(NAME, "", Severity.WARNING, evidence, RecoveryAction.INSPECT_HARDWARE)
    for name, window in of_series(windows, FLAPS).items():
        if window.amount > wanted.flaps_per_hour:
            evidence = f"InfiniBand port {name} lost its link {window.amount:.0f} times within an hour"
            yield Finding(NAME, "", Severity.WARNING, evidence, RecoveryAction.INSPECT_HARDWARE)
