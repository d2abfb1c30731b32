"""The corpus in short: every fault on two models, what looks like one, five healthy days."""

from __future__ import annotations

import gzip
from itertools import islice

import pytest

from nodeagent.config.model import Config, Health
from nodeagent.health.checks import CHECKS
from nodeagent.health.finding import Severity
from nodeagent.policy.decide import Drain, Restore, Resume, Retire
from nodeagent.replay.engine import replay
from nodeagent.replay.recording import Recorded, Truth, read_recording
from nodeagent.replay.score import score, total
from nodeagent.replay.story import tell
from tests.corpus.fault import SLOT, Fault
from tests.corpus.faults import FAULTS
from tests.corpus.measure import LEAD_IN, MODELS, try_day, try_fault, try_neighbour
from tests.corpus.neighbours import NEIGHBOURS, Neighbour
from tests.corpus.recorded import INTERVAL, PLAYS, RECORDINGS
from tests.corpus.world import World

TAKES_OUT = {"retire": Retire, "drain": Drain}
RECOVER = (Health().recover - 1) * 10.0
BRINGS_BACK = {"retire": Restore, "drain": Resume}


def test_every_check_has_a_fault_in_the_corpus() -> None:
    missing = [name for name in CHECKS if not any(f"{fault.check}-".startswith(f"{name}-") for fault in FAULTS)]
    assert missing == [], "plant a fault for each in tests/corpus/faults.py"


def test_names_are_told_apart() -> None:
    for some in (FAULTS, NEIGHBOURS):
        names = [one.name for one in some]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_by_its_own_check_and_is_over_when_it_is_over(fault: Fault) -> None:
    turn = FAULTS.index(fault) % len(MODELS)
    having = (one for model in MODELS[turn:] + MODELS[:turn] if (one := try_fault(fault, model)) is not None)
    tried = list(islice(having, 2))
    assert len(tried) == 2, "on several models"
    for one in tried:
        (truth,) = one.truths
        assert one.score.recall == 1.0, one.model
        assert one.score.false_alarms == one.score.false_actions == (), one.model
        own = [alarm for alarm in one.story.alarms if alarm.unit == truth.unit]
        assert {alarm.check for alarm in own} == {fault.check}
        assert truth.unit or all(alarm.check == fault.check for alarm in one.story.alarms)
        assert fault.state in [change.after for change in one.story.changes if change.unit == truth.unit]
        kinds = [type(decision) for _, decision in one.story.decisions]
        out = [TAKES_OUT[fault.leads_to]] if fault.leads_to else []
        back = [BRINGS_BACK[fault.leads_to]] if fault.leads_to and fault.returns else []
        assert kinds == [*out, *back], f"{one.model}: {one.story.decisions}"
        assert max(alarm.end for alarm in own) >= truth.end, "till it was over"
        late = [at for at, decision in one.story.decisions if isinstance(decision, (Restore, Resume))]
        assert all(at > truth.end + RECOVER for at in late), "seen well often enough"


@pytest.mark.parametrize("neighbour", NEIGHBOURS, ids=lambda neighbour: neighbour.name)
def test_what_is_no_fault_changes_nothing(neighbour: Neighbour) -> None:
    one = try_neighbour(neighbour, MODELS[NEIGHBOURS.index(neighbour) % len(MODELS)])
    assert one.story.decisions == []
    assert [alarm for alarm in one.story.alarms if alarm.severity is not Severity.UNKNOWN] == []
    assert one.story.verdict is not None and one.story.verdict.node_state == "OK"
    assert {unit.state for unit in one.story.verdict.units} == {"OK"}


def test_nothing_is_taken_out_of_five_healthy_days() -> None:
    days = [try_day(seed, interval=60.0) for seed in range(5)]
    healthy = total([one.score for one in days])
    assert healthy.node_days > 4.9
    assert healthy.false_actions == ()
    assert [alarm for alarm in healthy.false_alarms if alarm.severity is not Severity.UNKNOWN] == []
    assert sum(one.story.boots for one in days) > len(days), "some of them booted"


def test_the_same_seed_gives_the_same_node() -> None:
    def sweeps(seed: int) -> list[object]:
        with World("H100-80GB", seed) as world:
            return [list(world.run(100.0)), list(world.reboot(30.0, 20.0)), list(world.run(100.0))]

    assert sweeps(1) == sweeps(1)
    assert sweeps(1) != sweeps(2)


def test_the_fault_begins_where_the_truth_says() -> None:
    tried = try_fault(next(fault for fault in FAULTS if fault.name == "lost"), "H100-80GB")
    assert tried is not None
    with World("H100-80GB", 1) as world:
        unit = world.uuid(SLOT)
    (truth,) = tried.truths
    assert (truth.unit, truth.begin, truth.end) == (unit, LEAD_IN, LEAD_IN + 300.0)
    assert tried.story.changes[0].at == LEAD_IN + 10.0, "the next sweep"


def test_each_play_is_recorded_and_each_recording_is_a_play() -> None:
    assert sorted(path.name for path in RECORDINGS.iterdir()) == sorted(f"{name}.jsonl.gz" for name in PLAYS)


@pytest.mark.parametrize("name", PLAYS)
def test_what_an_earlier_release_recorded_is_judged_rightly(name: str) -> None:
    play = PLAYS[name]
    with gzip.open(RECORDINGS / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        entries = list(read_recording(file, name))
    sweeps = [one for one in entries if isinstance(one, Recorded)]
    truths = [one for one in entries if isinstance(one, Truth)]
    known = score(tell(replay(sweeps, Config(), INTERVAL)), truths, INTERVAL)
    assert len(sweeps) >= play.before + play.after
    assert known.recall == (1.0 if play.check else None)
    assert (known.false_alarms, known.false_actions) == ((), ())
    assert all(len(one.facts.gpus) <= play.gpus for one in sweeps)
