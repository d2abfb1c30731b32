"""What the site's own checks say, as findings, and how these count: by runs, not by cycles."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nodeagent.config.model import Health
from nodeagent.config.values import Within
from nodeagent.gpu.facts import BROKEN, ENDED, HUNG, NOT_YET, SiteResult
from nodeagent.health.checks import site
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.memory import Memory, clear, from_plain, to_plain
from nodeagent.health.scene import observe
from tests.unit.test_health_facts import Cycles, bus, gpu, node, uuid

FAILED = SiteResult("nhc", ENDED, 10.0, 1, "ERROR: nhc: check_fs_free: /tmp is full\n", action="inspect_hardware")
FINE = SiteResult("nhc", ENDED, 10.0, 0, "all is well\n")


def found(result: SiteResult) -> list[Finding]:
    scene = observe(Memory(), node(gpu(0), gpu(1), site=(result,)), Health())
    return list(site.find(scene, Health()))


def test_an_exit_status_of_0_with_a_word_is_no_finding() -> None:
    assert found(FINE) == []
    assert found(SiteResult("nhc")) == [], "not run yet"


def test_another_exit_status_is_a_finding_of_the_node_with_the_first_line_as_its_evidence() -> None:
    [one] = found(FAILED)
    assert one == Finding(
        *("site-nhc", "", Severity.ERROR),
        "nhc: ERROR: nhc: check_fs_free: /tmp is full (exit status 1)",
        RecoveryAction.INSPECT_HARDWARE,
        10.0,
    )
    [silent] = found(replace(FAILED, output="\n", severity="warning", action="none"))
    assert (silent.evidence, silent.severity) == ("nhc: no word (exit status 1)", Severity.WARNING)


@pytest.mark.parametrize(
    ("line", "units"),
    [
        (f"bad memory on {uuid(1).upper()}", [uuid(1)]),
        (f"PCI {bus(0)} is slow", [uuid(0)]),
        ("GPU 1: test failed", [uuid(1)]),
        ("gpu #0 and GPU 1 disagree", [uuid(0), uuid(1)]),
        ("GPU 17 is none of ours", [""]),
        ("no GPU is named", [""]),
    ],
)
def test_the_text_may_name_the_gpus(line: str, units: list[str]) -> None:
    result = replace(FAILED, output=f"{line}\n", unit_from="text")
    assert [one.unit for one in found(result)] == units
    assert [one.unit for one in found(replace(result, unit_from="node"))] == [""]


def test_lines_of_json_are_findings_of_their_own() -> None:
    lines = [
        {"unit": "1", "severity": "warning", "action": "reset_gpu", "evidence": "slow"},
        {"unit": f" {bus(0).upper()} ", "evidence": "broken"},
        {"evidence": "a fan"},
        {"unit": "GPU-unknown", "evidence": "who?"},
    ]
    text = "some words\n" + "".join(json.dumps(line) + "\n" for line in lines)
    findings = found(replace(FAILED, output=text))
    assert [(one.unit, one.severity, one.action.word, one.evidence) for one in findings] == [
        (uuid(1), Severity.WARNING, "reset_gpu", "slow"),
        (uuid(0), Severity.ERROR, "inspect_hardware", "broken"),
        ("", Severity.ERROR, "inspect_hardware", "a fan"),
        ("", Severity.ERROR, "inspect_hardware", "who? (on GPU-unknown, which is no GPU of this node)"),
    ]
    assert found(replace(FINE, output=text)) != [], "with an exit status of 0 as well"


def test_a_failure_whose_json_tells_nothing_grave_is_still_a_failure() -> None:
    info = json.dumps({"severity": "info", "evidence": "by the way"})
    findings = found(replace(FAILED, output=f"  {info}\nwhy\n"))
    assert [(one.severity, one.evidence) for one in findings] == [
        (Severity.INFO, "by the way"),
        (Severity.ERROR, "nhc: why (exit status 1)"),
    ]


@pytest.mark.parametrize(
    "line",
    ['{"evidence": "x"', '{"severity": "error"}', '{"evidence": "x", "severity": "fatal"}', "{}", "{" * 5000]
    + ['{"evidence": "x", "action": "explode"}', '{"evidence": "x", "severity": ["error"]}'],
)
def test_gibberish_is_a_fault_of_the_check_and_takes_nothing_out_of_service(line: str) -> None:
    [one] = found(replace(FINE, output=line + "\n"))
    assert (one.unit, one.severity, one.action) == ("", Severity.WARNING, RecoveryAction.NONE)
    assert one.evidence.startswith("the site's check nhc said what is not understood: {")
    assert len(found(replace(FAILED, output=line + "\n"))) == 2, "and the exit status counts all the same"


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (SiteResult("nhc", HUNG, 1.0, timeout=60.0), "did not end within 60 s and was ended"),
        (SiteResult("nhc", BROKEN, 1.0, why="cannot be started: no user x"), "cannot be started: no user x"),
        (SiteResult("nhc", BROKEN, 1.0), "could not be run"),
        (SiteResult("nhc", ENDED, 1.0, -11), "was ended by signal 11"),
        (SiteResult("nhc", ENDED, 1.0, 127, "nhc: not found"), "could not run (exit status 127): nhc: not found"),
        (SiteResult("nhc", ENDED, 1.0, 126, "\n"), "could not run (exit status 126): no word"),
    ],
)
def test_a_check_that_does_not_work_says_nothing_about_the_node(result: SiteResult, words: str) -> None:
    assert found(replace(result, severity="error", action="reboot_node")) == [
        Finding("site-nhc", "", Severity.WARNING, f"the site's check nhc {words}", at=1.0)
    ]


def test_each_gpu_that_the_text_names_has_the_first_line_that_names_it() -> None:
    text = f"first GPU 1\nthen GPU 0 and GPU 1\n{bus(0)} again\n"
    assert [(one.unit, one.evidence) for one in found(replace(FAILED, output=text, unit_from="text"))] == [
        (uuid(1), "nhc: first GPU 1 (exit status 1)"),
        (uuid(0), "nhc: then GPU 0 and GPU 1 (exit status 1)"),
    ]


@pytest.mark.parametrize("name", [uuid(0xAB), uuid(0xAB).upper(), uuid(0xAB).lower(), "00000000:AB:00.0", "171"])
def test_a_gpu_is_meant_by_its_uuid_bus_id_or_index_in_any_case(name: str) -> None:
    one = gpu(0xAB, bus_id="00000000:ab:00.0")
    line = json.dumps({"unit": name, "evidence": "bad"})
    scene = observe(Memory(), node(gpu(0), one, site=(replace(FINE, output=line),)), Health())
    assert [finding.unit for finding in site.find(scene, Health())] == [one.uuid]


def test_a_gpu_of_which_no_index_is_known_is_not_meant_by_minus_one() -> None:
    line = json.dumps({"unit": "-1", "evidence": "bad"})
    scene = observe(Memory(), node(gpu(0, index=None), site=(replace(FINE, output=line),)), Health())
    assert [finding.unit for finding in site.find(scene, Health())] == [""]


def test_what_a_check_calls_a_gpu_is_cut_in_the_evidence() -> None:
    [one] = found(replace(FINE, output=json.dumps({"unit": "x" * 61, "evidence": "bad"})))
    assert one.evidence == f"bad (on {'x' * 60}, which is no GPU of this node)"


def test_json_may_be_indented() -> None:
    [one] = found(replace(FAILED, output='  {"evidence": "bad", "severity": "warning"}\n'))
    assert (one.evidence, one.severity) == ("bad", Severity.WARNING)


def test_what_is_printed_is_cut_and_of_one_line() -> None:
    [one] = found(replace(FAILED, output="a\tb\x1b[31m\x07" + "x" * 10_000))
    assert one.evidence == f"nhc: a b[31m{'x' * 293} (exit status 1)"
    many = "".join(json.dumps({"evidence": str(n)}) + "\n" for n in range(1000))
    assert len(found(replace(FAILED, output=many))) == site.MOST_FINDINGS


# -- how they count ----------------------------------------------------------------------------------------------------


def about(number: int, at: float, **values: object) -> SiteResult:
    line = json.dumps({"unit": str(number), "evidence": "bad"})
    return replace(SiteResult("nhc", ENDED, at, 1, line), **values)  # type: ignore[arg-type]


def test_strikes_count_runs_not_cycles() -> None:
    cycles = Cycles(Health(strikes={"site-nhc": 2}))
    cycles.see(gpu(0))
    for _ in range(5):
        cycles.see(gpu(0), site=(about(0, 100.0),))
    assert cycles.state(0) == "OK", "five cycles have told one run"
    cycles.memory = from_plain(json.loads(json.dumps(to_plain(cycles.memory))))
    cycles.see(gpu(0), site=(about(0, 100.0),))
    assert cycles.state(0) == "OK", "over a restart too"
    cycles.see(gpu(0), site=(about(0, 160.0),))
    assert cycles.state(0) == "FAILED"


def test_a_result_that_came_after_the_sweep_counts_at_once_and_once() -> None:
    cycles = Cycles(Health(strikes={"site-nhc": 2}))
    cycles.see(gpu(0), site=(about(0, 110.5),))
    assert cycles.state(0) == "UNKNOWN"
    cycles.see(gpu(0), site=(about(0, 110.5),))
    assert cycles.memory.units[uuid(0)].strikes == {"site-nhc": 1}
    one = Cycles()
    one.see(gpu(0), site=(about(0, 110.5),))
    assert one.state(0) == "FAILED"


def test_strikes_within_a_time_count_runs() -> None:
    cycles = Cycles(Health(strikes={"site-nhc": Within(2, 300.0)}))
    cycles.see(gpu(0))
    for result in (about(0, 120.0), about(0, 120.0), replace(FINE, monotonic=140.0)):
        cycles.see(gpu(0), site=(result,))
    assert cycles.state(0) == "OK"
    cycles.see(gpu(0), site=(about(0, 150.0),))
    assert cycles.state(0) == "FAILED"


def test_a_clean_run_takes_it_back_and_a_check_that_has_not_run_yet_does_not() -> None:
    cycles = Cycles(Health(recover=2))
    cycles.see(gpu(0), site=(about(0, 100.0),))
    assert cycles.state(0) == "FAILED"
    for _ in range(5):  # the agent was started anew, and the check takes its time
        cycles.see(gpu(0), site=(SiteResult("nhc", NOT_YET),))
    assert cycles.state(0) == "FAILED"
    cycles.see(gpu(0), site=(FINE,))
    assert cycles.state(0) == "FAILED"
    cycles.see(gpu(0), site=(FINE,))
    assert cycles.state(0) == "OK"


def test_what_was_found_on_the_node_stays_until_the_check_has_run_as_well() -> None:
    cycles = Cycles(Health(recover=2))
    assert cycles.see(gpu(0), site=(FAILED,)).node_state == "FAILED"
    for _ in range(5):
        assert cycles.see(gpu(0), site=(SiteResult("nhc", NOT_YET),)).node_state == "FAILED"
    assert [cycles.see(gpu(0), site=(FINE,)).node_state for _ in range(2)] == ["FAILED", "OK"]


@pytest.mark.parametrize(
    "silent", [SiteResult("nhc", HUNG, 200.0, timeout=60.0), SiteResult("nhc", BROKEN, 200.0), replace(FINE, status=-9)]
)
def test_a_check_that_does_not_work_any_more_takes_nothing_back(silent: SiteResult) -> None:
    cycles = Cycles(Health(recover=2))
    cycles.see(gpu(0), site=(about(0, 100.0),))
    for _ in range(5):
        verdict = cycles.see(gpu(0), site=(silent,))
    assert (verdict.node_state, cycles.state(0)) == ("DEGRADED", "FAILED")
    cycles.see(gpu(0), site=(replace(FINE, monotonic=300.0),))
    verdict = cycles.see(gpu(0), site=(replace(FINE, monotonic=300.0),))
    assert (verdict.node_state, cycles.state(0)) == ("OK", "OK")


def test_a_check_that_is_not_configured_any_more_holds_nothing() -> None:
    cycles = Cycles(Health(recover=2))
    cycles.see(gpu(0), site=(about(0, 100.0),))
    cycles.see(gpu(0))
    cycles.see(gpu(0))
    assert cycles.state(0) == "OK"


def test_a_check_that_hangs_degrades_the_node_and_no_gpu() -> None:
    cycles = Cycles()
    verdict = cycles.see(gpu(0), site=(SiteResult("nhc", HUNG, 5.0, timeout=60.0, action="reboot_node"),))
    assert (verdict.node_state, cycles.state(0)) == ("DEGRADED", "OK")


def test_after_a_restore_the_check_is_asked_anew() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), site=(about(0, 100.0),))
    cycles.memory = clear(cycles.memory, uuid(0))
    cycles.see(gpu(0), site=(SiteResult("nhc", NOT_YET),))
    assert cycles.state(0) == "OK"
