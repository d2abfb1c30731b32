"""The corpus through the engine: what each fault led to, and how right all of it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nodeagent.config.model import Config
from nodeagent.replay.engine import replay
from nodeagent.replay.recording import Recorded, Truth
from nodeagent.replay.score import Score, score
from nodeagent.replay.story import Story, tell
from tests.corpus.fault import SLOT, Fault
from tests.corpus.healthy import DAY, healthy_day
from tests.corpus.neighbours import Neighbour
from tests.corpus.world import World

MODELS = ("A100-80GB", "H100-80GB", "V100-32GB", "L40S", "B200", "T4")
LEAD_IN, LEAD_OUT = 120.0, 120.0
BEFORE_FIRST = 40.0  # seconds in which an agent that has just begun may still be in doubt


@dataclass(frozen=True)
class Tried:
    """One recording of the corpus, replayed."""

    model: str
    name: str
    story: Story
    score: Score
    truths: tuple[Truth, ...] = ()


def try_fault(fault: Fault, model: str, seed: int = 1, interval: float = 10.0) -> Tried | None:
    """Return what the engine makes of a fault on a busy node of that model; None where such a model cannot have it."""
    with World(model, seed, interval) as world:
        if not fault.fits(world):
            return None
        config = replace(Config(), health=fault.settings(world))
        story = tell(replay(_with(world, fault), config, interval))
        return Tried(model, fault.name, story, score(story, world.truths, interval), tuple(world.truths))


def _with(world: World, fault: Fault) -> Iterator[Recorded]:
    if not fault.from_start:
        yield from world.run(LEAD_IN)
    with world.truth(None if fault.on_node else SLOT, fault.check):
        fault.plant(world, SLOT)
        yield from world.run(fault.lasts)
    fault.clear(world, SLOT)
    if not fault.from_start:
        yield from world.run(LEAD_OUT)


def try_neighbour(neighbour: Neighbour, model: str, seed: int = 1, interval: float = 10.0) -> Tried:
    """Return what the engine makes of something that is no fault."""
    with World(model, seed, interval) as world:
        story = tell(replay(_around(world, neighbour), Config(), interval))
        return Tried(model, neighbour.name, story, score(story, (), interval))


def _around(world: World, neighbour: Neighbour) -> Iterator[Recorded]:
    yield from world.run(LEAD_IN)
    yield from neighbour.happen(world)
    yield from world.run(LEAD_OUT)


def try_day(seed: int, interval: float = 10.0, seconds: float = DAY) -> Tried:
    """Return what the engine makes of a healthy day; the models take turns."""
    model = MODELS[seed % len(MODELS)]
    with World(model, seed, interval) as world:
        story = tell(replay(healthy_day(world, seconds), Config(), interval))
        return Tried(model, f"healthy day {seed}", story, score(story, (), interval))
