"""`replay --json`: a replay's story and score as one JSON object. Pure."""

from __future__ import annotations

from typing import Any

from nodeagent.health.finding import RecoveryAction
from nodeagent.policy.decide import Decision, Drain, Raise, Restore, Resume, Retire, RunCommand
from nodeagent.replay.recording import Header
from nodeagent.replay.score import Score
from nodeagent.replay.story import Change, Story
from nodeagent.report import plain_finding, schema, worst_state


def replay_document(header: Header, story: Story, known: Score | None) -> dict[str, Any]:
    """Return the document; times are seconds since the recording began, `score` is null without known truth."""
    return {
        **schema("replay"),
        "node": header.node,
        "recorded_by": header.version,
        "started": header.started or None,
        "interval": header.interval,
        "sweeps": story.sweeps,
        "boots": story.boots,
        "seconds": story.end - story.begin,
        "changes": [_change(change) for change in story.changes],
        "decisions": [_decision(at, decision) for at, decision in story.decisions],
        "verdict": "UNKNOWN" if story.verdict is None else worst_state(story.verdict),
        "left": _left(story),
        "score": None if known is None else _score(known),
    }


def elapsed(seconds: float) -> str:
    """Return a time as people read it: `1d 02:03:04`."""
    days, rest = divmod(int(seconds), 86400)
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}d {clock}" if days else clock


def _change(change: Change) -> dict[str, Any]:
    return {
        "at": change.at,
        "unit": change.unit,
        "index": change.index if change.index >= 0 else None,
        "from": change.before,
        "to": change.after,
        "reasons": [plain_finding(finding) for finding in change.reasons],
    }


def _decision(at: float, decision: Decision) -> dict[str, Any]:
    words = {Retire: "retire", Restore: "restore", Drain: "drain", Resume: "resume", Raise: "raise_drain"}
    action = getattr(decision, "action", RecoveryAction.NONE)
    entry = {
        "at": at,
        "decision": words.get(type(decision), "forget_drain"),
        "unit": getattr(decision, "unit", ""),
        "why": getattr(decision, "reason", ""),
        "action": action.word,
    }
    if isinstance(decision, RunCommand):
        found = decision.finding
        why = f"{decision.command} for {found.evidence}"
        entry.update(decision="run_command", command=decision.command, why=why, action=found.action.word)
    return entry


def _left(story: Story) -> list[str]:
    """Return what is out of service at the end, in words."""
    out: dict[str, str] = {}
    for _, decision in story.decisions:
        if isinstance(decision, Retire):
            out[decision.unit] = f"{decision.unit} retired"
        elif isinstance(decision, Restore):
            out.pop(decision.unit, None)
        elif isinstance(decision, Drain):
            out[""] = "node drained"
        elif isinstance(decision, Resume):
            out.pop("", None)
    return list(out.values())


def _score(known: Score) -> dict[str, Any]:
    return {
        "faults": len(known.detections),
        "found": len(known.detections) - len(known.missed),
        "recall": known.recall,
        "alarms": known.true_alarms + len(known.false_alarms),
        "false_alarms": len(known.false_alarms),
        "precision": known.precision,
        "false_actions": len(known.false_actions),
        "node_days": known.node_days,
        "false_alarms_a_node_day": known.false_alarms_a_day,
        "false_actions_a_node_day": known.false_actions_a_day,
        "delay_median_s": known.median_delay,
        "delay_longest_s": known.delays[-1] if known.delays else None,
        "missed": [{"fault": one.fault, "unit": one.unit, "at": one.begin} for one in known.missed],
    }
