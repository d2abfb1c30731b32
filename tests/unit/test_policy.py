"""Decisions from verdicts: pure, so every row of the table can be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from nodeagent.config.model import Policy
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.verdict import UnitVerdict, Verdict
from nodeagent.policy.decide import (
    BY_ADMIN,
    Drain,
    DrainRecord,
    ForgetDrain,
    Restore,
    Resume,
    Retire,
    decide_node,
    decide_units,
    describe,
    needs,
    wanted_drain,
)
from nodeagent.policy.limits import full, most_drained
from nodeagent.scheduler.port import Fleet, NodeState

ACTIONS = [action for action in RecoveryAction if action >= RecoveryAction.RESET_GPU]


def unit(state: str = "FAILED", action: RecoveryAction = RecoveryAction.RESET_GPU) -> UnitVerdict:
    finding = Finding("xid", "GPU-a", Severity.ERROR, "XID 79 (fell off)\non GPU 3 0000:3b:00.0", action)
    return UnitVerdict("GPU-a", state, 0.0, (finding,) if state != "OK" else (), 3, 3, "0000:3b:00.0")


def verdict(*units: UnitVerdict, node: str = "OK", findings: tuple[Finding, ...] = ()) -> Verdict:
    return Verdict("boot", 1.0, units, node, findings)


def test_a_reason_names_gpu_fault_and_action_on_one_line() -> None:
    words = needs(describe(unit()), unit().action)
    assert "GPU 3 0000:3b:00.0" in words and "79" in words and words.endswith("; needs reset_gpu") and "GPU-a" in words
    assert "\n" not in words


@pytest.mark.parametrize("action", ACTIONS)
def test_grave_faults_retire_the_unit(action: RecoveryAction) -> None:
    [decision] = decide_units(verdict(unit(action=action)), {}, Policy())
    assert isinstance(decision, Retire) and (decision.unit, decision.check) == ("GPU-a", "xid")


def test_application_faults_unknown_and_told_ones_retire_nothing() -> None:
    for one in (unit(action=RecoveryAction.RESTART_APPLICATION), unit("UNKNOWN"), unit("DEGRADED"), unit("OK")):
        assert list(decide_units(verdict(one), {}, Policy())) == []
    assert list(decide_units(verdict(unit()), {}, Policy(reset_gpu="tell"))) == []


def test_a_gpu_of_which_nothing_is_known_for_long_is_taken_out() -> None:
    unknown = unit("UNKNOWN", RecoveryAction.NONE)
    for now, out in ((600.0, False), (601.0, True)):
        found = Verdict("boot", now, (unknown,))
        assert bool(list(decide_units(found, {}, Policy()))) is out
        assert bool(wanted_drain(found, Policy(), spares_units=False, retired={})) is out
        assert wanted_drain(found, Policy(), spares_units=True, retired={}) is None
    [decision] = decide_units(found, {}, Policy())
    assert isinstance(decision, Retire) and decision.action is RecoveryAction.RESET_GPU
    assert list(decide_units(found, {}, Policy(reset_gpu="tell"))) == []


def test_a_retired_unit_comes_back_when_well_and_only_what_the_agent_retired() -> None:
    ours = {"GPU-a": {"by": "agent", "action": "reset_gpu"}}
    assert list(decide_units(verdict(unit("OK")), ours, Policy())) == [Restore("GPU-a")]
    assert list(decide_units(verdict(unit("DEGRADED")), ours, Policy())) == [Restore("GPU-a")]
    for state in ("FAILED", "UNKNOWN"):
        assert list(decide_units(verdict(unit(state)), ours, Policy())) == []
    for record in ({"by": BY_ADMIN}, {"by": "unknown"}, {"by": "agent", "action": "inspect_hardware"}, {}):
        assert list(decide_units(verdict(unit("OK")), {"GPU-a": record}, Policy())) == []


@pytest.mark.parametrize("action", ACTIONS)
def test_a_unit_that_the_scheduler_cannot_spare_drains_the_node(action: RecoveryAction) -> None:
    failed = verdict(unit(action=action))
    assert wanted_drain(failed, Policy(), spares_units=True, retired={}) is None
    drain = wanted_drain(failed, Policy(), spares_units=False, retired={})
    assert drain is not None and drain.reason.startswith("gpu-nodeagent/1: ") and drain.action is action


def test_a_policy_of_drain_drains_wherever_it_is() -> None:
    assert wanted_drain(verdict(unit()), Policy(reset_gpu="drain"), spares_units=True, retired={}) is not None
    assert wanted_drain(verdict(unit()), Policy(reset_gpu="tell"), spares_units=False, retired={}) is None


def test_an_unfit_driver_drains_the_node() -> None:
    finding = Finding("driver-init", "", Severity.ERROR, "versions differ", RecoveryAction.REBOOT_NODE)
    drain = wanted_drain(verdict(node="FAILED", findings=(finding,)), Policy(), spares_units=True, retired={})
    assert drain == Drain(
        "gpu-nodeagent/1: driver-init: versions differ; needs reboot_node", RecoveryAction.REBOOT_NODE
    )
    assert wanted_drain(verdict(node="UNKNOWN"), Policy(), spares_units=True, retired={}) is None


def test_a_reason_of_many_faults_stays_short() -> None:
    drain = wanted_drain(verdict(*[unit()] * 16), Policy(), spares_units=False, retired={})
    assert drain is not None and len(drain.reason) <= 400


DRAIN = Drain("gpu-nodeagent/1: x", RecoveryAction.RESET_GPU)
OURS = DrainRecord(DRAIN.reason, DRAIN.action)
WELL = verdict(unit("OK"))


def test_a_node_is_drained_once_and_never_over_anothers_reason() -> None:
    assert list(decide_node(DRAIN, None, NodeState(False), WELL)) == [DRAIN]
    assert list(decide_node(DRAIN, None, NodeState(True, "fan is loud"), WELL)) == []
    assert list(decide_node(DRAIN, OURS, NodeState(True, DRAIN.reason), WELL)) == []


def test_a_node_that_somebody_resumed_is_not_drained_again_for_the_same() -> None:
    wanted = replace(DRAIN, faults=frozenset({"boot/GPU-a/xid"}))
    assert list(decide_node(wanted, OURS, NodeState(False), WELL)) == [ForgetDrain(wanted.faults)]


def test_a_drain_that_was_never_seen_to_stand_is_made_again() -> None:
    unseen = replace(OURS, stands=False)
    assert list(decide_node(DRAIN, unseen, NodeState(False), WELL)) == [DRAIN]
    assert list(decide_node(None, unseen, NodeState(False), WELL)) == [ForgetDrain()]


def faults(found: Verdict, retired: Mapping[str, Mapping[str, str]] | None = None) -> frozenset[str]:
    drain = wanted_drain(found, Policy(), spares_units=False, retired=retired or {})
    assert drain is not None
    return drain.faults


def told(words: str, check: str = "xid", state: str = "FAILED") -> UnitVerdict:
    finding = Finding(check, "GPU-a", Severity.ERROR, words, RecoveryAction.RESET_GPU)
    return UnitVerdict("GPU-a", state, 0.0, (finding,), 3, 3, "0000:3b:00.0")


def test_a_fault_is_the_same_while_it_stands_and_another_when_it_comes_again() -> None:
    once = verdict(told("XID 79 (fell off) on GPU 3"))
    going = verdict(told("XID 79 (fell off) on GPU 3 (not seen now; clean cycles: 1 of 3)"))
    assert faults(once) == faults(going)
    for other in ("XID 79 (fell off) on GPU 3, 2 times", "XID 48 (DBE) on GPU 3"):
        assert not faults(verdict(told(other))) <= faults(once)
    assert not faults(replace(once, boot_id="next")) <= faults(once)
    reading, later = (verdict(told(f"{errors} errors", "ecc")) for errors in (3, 4))
    assert faults(reading) == faults(later), "a value that goes on rising is the same fault"


def test_a_unit_that_stays_retired_after_its_fault_is_no_new_fault() -> None:
    retired = {"GPU-a": {"since": "7", "reason": "x"}}
    assert faults(verdict(unit("OK")), retired) <= faults(verdict(unit()), retired)
    assert not faults(verdict(unit("OK")), {"GPU-a": {"since": "8"}}) <= faults(verdict(unit()), retired)
    silent = Verdict("boot", 700.0, (UnitVerdict("GPU-a", "UNKNOWN", 0.0),))
    assert faults(silent) == {"boot/GPU-a/unknown"}


def test_only_our_own_drain_is_taken_back_and_only_when_all_is_well() -> None:
    drained = NodeState(True, DRAIN.reason)
    assert list(decide_node(None, OURS, drained, WELL)) == [Resume()]
    assert list(decide_node(None, OURS, NodeState(True, None), WELL)) == [Resume()]
    assert list(decide_node(None, None, drained, WELL)) == []
    assert list(decide_node(None, OURS, NodeState(True, "fan is loud"), WELL)) == [ForgetDrain()]
    assert list(decide_node(None, OURS, NodeState(False), WELL)) == [ForgetDrain()]
    for doubtful in (verdict(unit("UNKNOWN")), verdict(unit("OK"), node="UNKNOWN"), verdict(unit("FAILED"))):
        assert list(decide_node(None, OURS, drained, doubtful)) == []
    by_admin = DrainRecord(DRAIN.reason, by=BY_ADMIN)
    inspect = DrainRecord(DRAIN.reason, RecoveryAction.INSPECT_HARDWARE)
    for record in (by_admin, inspect):
        assert list(decide_node(None, record, drained, WELL)) == []


@pytest.mark.parametrize(
    ("limit", "nodes", "most"),
    [("4", 100, 4), ("10%", 100, 10), ("10%", 5, 1), ("10%", 11, 2), ("0%", 5, 0), ("0", 5, 0)],
)
def test_how_many_nodes_may_be_out(limit: str, nodes: int, most: int) -> None:
    assert most_drained(limit, nodes) == most
    if most:
        assert full([Fleet(nodes, most - 1)], limit) is None
    assert full([Fleet(nodes, most)], limit) == Fleet(nodes, most)


def test_every_group_that_has_the_node_has_to_have_room() -> None:
    small, large = Fleet(4, 1, "partition debug"), Fleet(100, 1, "partition main")
    assert full([large, small], "10%") is small
    assert full([large, small], "2") is None
    assert full([], "10%") is None, "a node in no partition is out already"
