"""Readings that checks follow over time: each unit's windows are brought up to date before the checks look. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from nodeagent.config.model import Health
from nodeagent.gpu.facts import GpuFacts
from nodeagent.health.memory import Memory, UnitMemory
from nodeagent.health.scene import Scene, initialised_anew
from nodeagent.health.window import HOUR, Window, Windows, rise, stand, sustained


@dataclass(frozen=True)
class Sight:
    """One GPU that was read in this cycle, and what may be wanted to tell what its reading means.

    `window` is the one that there is already, None at the first reading.
    """

    gpu: GpuFacts
    unit: UnitMemory
    scene: Scene
    settings: Health
    window: Window | None


@dataclass(frozen=True)
class Series:
    """What is followed: `read` returns a level between 0 and 1, or with `counter` a count that only rises.

    None: nothing can be said now, and the window stays as it is. `length` is the window's, in seconds.
    """

    read: Callable[[Sight], float | None]
    length: Callable[[Health], float]
    counter: bool = False


@dataclass(frozen=True)
class NodeSeries:
    """Something of the node that is followed, of which there may be several (its ports, say).

    `read` returns the levels, or with `counter` the counts, by name; its second argument are the windows that there are
    by these names. What it leaves out stays as it is.
    """

    read: Callable[[Scene, Windows, Health], Mapping[str, float]]
    length: Callable[[Health], float]
    counter: bool = False


def hour(settings: Health) -> float:
    """The length of windows in which errors an hour are counted."""
    return HOUR


def window_length(settings: Health) -> float:
    """The length of windows in which a state has to stand for most of the time."""
    return settings.sustained.window


def long_enough(window: Window, settings: Health) -> bool:
    """Say whether a level stood for the share of the whole window that the settings ask for."""
    return sustained(window, settings.sustained.share, settings.sustained.window)


def of_series(windows: Windows, name: str) -> dict[str, Window]:
    """Return the node's windows of one series, by what they are of."""
    return {key.partition("@")[2]: window for key, window in windows.items() if key.partition("@")[0] == name}


def follow(
    scene: Scene,
    before: Memory,
    settings: Health,
    series: Mapping[str, Series],
    of_node: Mapping[str, NodeSeries],
) -> Scene:
    """Return the scene with the windows of the node, and of every GPU that was read, brought up to date."""
    units = dict(scene.units)
    for uuid, gpu in scene.read.items():
        old = before.units.get(uuid)
        known = {} if old is None or initialised_anew(old, gpu) else units[uuid].windows
        first = Sight(gpu, units[uuid], scene, settings, None)
        units[uuid] = replace(units[uuid], windows=_windows(known, first, series))
    node = replace(scene.node, windows=_node_windows(scene, settings, of_node))
    return replace(scene, units=units, node=node)


def _node_windows(scene: Scene, settings: Health, series: Mapping[str, NodeSeries]) -> dict[str, Window]:
    found = {}
    for name, one in series.items():
        known = of_series(scene.node.windows, name)
        for what, value in one.read(scene, known, settings).items():
            step = rise if one.counter else stand
            known[what] = step(known.get(what), value, scene.facts.monotonic, one.length(settings))
        found.update({f"{name}@{what}": window for what, window in known.items()})
    return found


def _windows(known: Mapping[str, Window], sight: Sight, series: Mapping[str, Series]) -> dict[str, Window]:
    now = sight.scene.facts.monotonic
    found = {name: window for name, window in known.items() if name in series}
    for name, one in series.items():
        old = found.get(name)
        value = one.read(replace(sight, window=old))
        if value is not None:
            found[name] = (rise if one.counter else stand)(old, value, now, one.length(sight.settings))
    return found
