"""What a unit remembers and shows of its findings: what stands together, what is doubted, in which order it is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.memory import Standing
from nodeagent.health.verdict import UnitVerdict
from tests.unit.test_health_verdict import BAD, DOUBT, INFO, WARN, Unit, finding

NONE, RESET, REBOOT, INSPECT = (
    RecoveryAction.NONE,
    RecoveryAction.RESET_GPU,
    RecoveryAction.REBOOT_NODE,
    RecoveryAction.INSPECT_HARDWARE,
)


def test_findings_of_one_check_and_severity_stand_together_and_others_apart() -> None:
    unit = Unit(Health())
    twice = replace(BAD, evidence="a second one")
    milder = replace(BAD, severity=Severity.WARNING)
    unit.see(BAD, WARN, twice, milder)
    assert unit.memory.standing == (Standing((BAD, twice)), Standing((WARN,)), Standing((milder,)))


def test_what_gathers_on_a_unit_in_doubt_is_shown_as_a_doubt() -> None:
    unit = Unit(Health(default_strikes=3, strikes={}))
    assert unit.see(BAD, WARN) == "UNKNOWN"
    assert [(one.check, one.severity, one.evidence) for one in unit.reasons] == [
        ("e", Severity.UNKNOWN, "e ERROR (seen 1 of 3 times)"),
        ("w", Severity.UNKNOWN, "w WARNING (seen 1 of 3 times)"),
    ]


@pytest.mark.parametrize(("now", "state"), [(59.5, "UNKNOWN"), (60.0, "OK")])
def test_a_unit_that_is_not_read_before_the_node_has_settled_is_in_doubt(now: float, state: str) -> None:
    unit = Unit(Health(settle=60.0))
    unit.now = 10.0
    assert unit.see() == "OK"
    unit.now = now - 1.0
    assert unit.see(judged=False) == state


def test_a_time_to_be_clean_is_told_from_its_beginning() -> None:
    unit = Unit(Health(recover=2, recover_after={"e": 100.0}))
    unit.see(BAD)
    unit.see(judged=False)
    assert unit.reasons[0].evidence == "e ERROR (not seen now; clean cycles: 0 of 2, clean for 0 of 100 s)"
    unit.see()
    assert unit.reasons[0].evidence == "e ERROR (not seen now; clean cycles: 1 of 2, clean for 0 of 100 s)"
    unit.see(after=100.0)
    assert unit.reasons == ()


def test_reasons_are_told_from_the_worst_to_the_mildest() -> None:
    told = [
        finding("z", Severity.ERROR, REBOOT),
        finding("a", Severity.ERROR, RESET),
        finding("b", Severity.ERROR, RESET),
        replace(finding("b", Severity.ERROR, RESET), evidence="c"),
        DOUBT,
        finding("w", Severity.WARNING, INSPECT),
        INFO,
    ]
    unit = Unit(Health())
    unit.see(*reversed(told))
    assert list(unit.reasons) == told


@pytest.mark.parametrize(
    ("reasons", "action"),
    [
        ((), NONE),
        ((WARN,), NONE),
        ((finding("w", Severity.WARNING, INSPECT), finding("e", Severity.ERROR, RESET)), RESET),
        ((finding("e", Severity.ERROR, RESET), finding("f", Severity.ERROR, REBOOT)), REBOOT),
        ((finding("f", Severity.ERROR, REBOOT), finding("e", Severity.ERROR, RESET)), REBOOT),
        ((finding("d", Severity.UNKNOWN), finding("w", Severity.WARNING, INSPECT)), NONE),
        ((INFO,), RecoveryAction.RESTART_APPLICATION),
    ],
)
def test_the_action_is_the_gravest_that_the_worst_reasons_ask_for(
    reasons: tuple[Finding, ...], action: RecoveryAction
) -> None:
    assert UnitVerdict("u", "OK", 0.0, reasons).action is action
