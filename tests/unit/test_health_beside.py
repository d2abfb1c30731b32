"""A GPU of which a check can say nothing stands before one that is ill: the second is judged all the same."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.config.model import Health
from nodeagent.config.thresholds import Expect, Sustained
from nodeagent.gpu.facts import ENDED, SiteResult
from nodeagent.health.finding import Finding, Severity
from tests.unit.test_health_facts import Cycles, checks_of, gpu, xid

SETTINGS = Health(sustained=Sustained(window=60.0), expect=Expect(vbios=("96.*",)))
LINKS = {"nvlink_total": 18, "nvlink_active": 18}


@pytest.mark.parametrize(
    ("check", "first", "second"),
    [
        ("fabric-state", {"fabric_state": 0}, {"fabric_state": 1}),
        ("nvlink-down", {}, {**LINKS, "nvlink_active": 17, "fabric_state": 3}),
        ("nvlink-down", {**LINKS, "mig_enabled": True}, {**LINKS, "nvlink_active": 17, "fabric_state": 3}),
        ("nvlink-down", LINKS, {**LINKS, "nvlink_active": 17}),
        ("power-readout", {}, {"power": 0.0}),
        ("power-readout", {"power": 70.0}, {"power": 0.0}),
        ("reset-required", {}, {"recovery_action": 1}),
        ("reset-required", {"recovery_action": None}, {"recovery_action": 9}),
        ("vbios-version", {}, {"vbios": "97.0"}),
    ],
)
def test_the_second_gpu_is_judged(check: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    cycles = Cycles(SETTINGS)
    for _ in range(7):
        cycles.see(gpu(0, **first), gpu(1, **second))
    assert [checks_of(unit.reasons) for unit in cycles.verdict.units] == [[], [check]]


def test_links_that_were_down_and_are_up_do_not_hide_those_of_the_next_gpu() -> None:
    cycles = Cycles(SETTINGS)
    down = {**LINKS, "nvlink_active": 17}
    cycles.see(gpu(0, **LINKS), gpu(1, **LINKS))
    for _ in range(7):
        cycles.see(gpu(0, **down), gpu(1, **down))
    cycles.see(gpu(0, **LINKS), gpu(1, **down))
    assert "not seen now" in cycles.unit(0).reasons[0].evidence
    assert [reason.evidence for reason in cycles.unit(1).reasons] == [
        f"17 of 18 NVLinks of {cycles.memory.units[cycles.unit(1).uuid].place} are up"
    ]


def test_a_check_of_the_sites_that_has_not_run_does_not_hide_the_next_one() -> None:
    cycles = Cycles(SETTINGS)
    verdict = cycles.see(gpu(0), site=(SiteResult("one"), SiteResult("two", ENDED, 1.0, 1, "bad")))
    assert checks_of(verdict.node_findings) == ["site-two"]


def test_a_fault_of_an_nvswitch_does_not_hide_the_xid_after_it() -> None:
    cycles = Cycles(SETTINGS)
    switch = xid(0, 19, kind="sxid", bus_id="0000:85:00.0")
    verdict = cycles.see(gpu(0), xids=(switch, switch, xid(0, 13)))
    evidence = "SXid 19 (meaning unknown) on NVSwitch 0000:85:00.0, 2 times"
    assert verdict.node_findings == (Finding("sxid", "", Severity.INFO, evidence),)
    assert checks_of(cycles.unit(0).reasons) == ["xid"]
