"""How right a replay was, against what is known to have been true. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from nodeagent.health.checks import CHECKS
from nodeagent.health.finding import Severity
from nodeagent.policy.decide import Decision, Drain, Retire
from nodeagent.replay.recording import Truth
from nodeagent.replay.story import Alarm, Story

DAY = 86400.0


@dataclass(frozen=True)
class Detection:
    """Whether and after how many seconds a fault was found (None: it was not)."""

    truth: Truth
    delay: float | None


@dataclass(frozen=True)
class Score:
    """The figures of a replay with known truth, or of several of them together (`total`)."""

    detections: tuple[Detection, ...]
    true_alarms: int
    false_alarms: tuple[Alarm, ...]
    false_actions: tuple[tuple[float, Decision], ...]
    """Units retired and nodes drained while nothing was wrong."""
    node_days: float

    @property
    def missed(self) -> tuple[Truth, ...]:
        """The faults that were not found."""
        return tuple(one.truth for one in self.detections if one.delay is None)

    @property
    def recall(self) -> float | None:
        """The share of faults that were found; None without any."""
        return _share(len(self.detections) - len(self.missed), len(self.detections))

    @property
    def precision(self) -> float | None:
        """The share of alarms that had a reason; None without any."""
        return _share(self.true_alarms, self.true_alarms + len(self.false_alarms))

    @property
    def delays(self) -> tuple[float, ...]:
        """Seconds from each fault's beginning to its detection, the shortest first."""
        return tuple(sorted(one.delay for one in self.detections if one.delay is not None))

    @property
    def median_delay(self) -> float | None:
        """The delay that half of the faults stay below, in seconds."""
        return median(self.delays) if self.delays else None

    @property
    def false_alarms_a_day(self) -> float | None:
        """False alarms a node-day."""
        return _share(len(self.false_alarms), self.node_days)

    @property
    def false_actions_a_day(self) -> float | None:
        """Units and nodes taken out for nothing, a node-day."""
        return _share(len(self.false_actions), self.node_days)


def score(story: Story, truths: Sequence[Truth], interval: float) -> Score:
    """Return how right the story is.

    A fault is found when the check it is named after (any, where it is named after none) counts on its unit while it
    lasts. An alarm has a reason when it begins while its unit, or the node, has a fault; that a unit is UNKNOWN, and
    what is said of the node as a whole, may have it in any unit. An action has a reason while such an alarm stands.
    """
    right = [alarm for alarm in story.alarms if _has_reason(alarm, truths)]
    wrong = [alarm for alarm in story.alarms if alarm not in right]
    actions = [
        (at, decision)
        for at, decision in story.decisions
        if isinstance(decision, (Retire, Drain)) and not _follows(at, decision, right)
    ]
    days = (story.end - story.begin + interval) / DAY if story.sweeps else 0.0
    detections = tuple(Detection(truth, _delay(truth, story.alarms)) for truth in truths)
    return Score(detections, len(right), tuple(wrong), tuple(actions), days)


def total(scores: Sequence[Score]) -> Score:
    """Return the figures of several recordings together."""
    return Score(
        tuple(detection for one in scores for detection in one.detections),
        sum(one.true_alarms for one in scores),
        tuple(alarm for one in scores for alarm in one.false_alarms),
        tuple(action for one in scores for action in one.false_actions),
        sum(one.node_days for one in scores),
    )


def _delay(truth: Truth, alarms: Sequence[Alarm]) -> float | None:
    found = [
        max(0.0, alarm.begin - truth.begin)
        for alarm in alarms
        if alarm.unit == truth.unit
        and (alarm.check == truth.fault or truth.fault not in CHECKS)
        and alarm.begin <= truth.end
        and alarm.end >= truth.begin
    ]
    return min(found, default=None)


def _has_reason(alarm: Alarm, truths: Sequence[Truth]) -> bool:
    anywhere = not alarm.unit or alarm.severity is Severity.UNKNOWN
    return any(truth.holds(alarm.begin) and (anywhere or truth.unit in ("", alarm.unit)) for truth in truths)


def _follows(at: float, decision: Retire | Drain, right: Sequence[Alarm]) -> bool:
    unit = decision.unit if isinstance(decision, Retire) else None
    return any(alarm.stands(at) and (unit is None or alarm.unit in ("", unit)) for alarm in right)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
