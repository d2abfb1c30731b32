"""The site's rules: each condition, what goes before what, and what is told of a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.config.check_names import OWN_CHECKS
from nodeagent.config.load import load
from nodeagent.config.model import Policy
from nodeagent.config.policy_rules import Rule, SiteCommand
from nodeagent.errors import ConfigError
from nodeagent.health.checks import CHECKS
from nodeagent.health.checks.site import NAME, check_name
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.verdict import UnitVerdict, Verdict
from nodeagent.policy.decide import (
    AwaitIdle,
    Drain,
    DrainRecord,
    Restore,
    Retire,
    RunCommand,
    decide_commands,
    decide_node,
    decide_units,
    wanted_drain,
)
from nodeagent.policy.rules import Ruling, ruling_of_node, ruling_of_unit
from nodeagent.scheduler.port import NodeState

RESET, REBOOT, NONE = RecoveryAction.RESET_GPU, RecoveryAction.REBOOT_NODE, RecoveryAction.NONE
INSPECT = RecoveryAction.INSPECT_HARDWARE
STATES = {Severity.ERROR: "FAILED", Severity.UNKNOWN: "UNKNOWN", Severity.WARNING: "DEGRADED", Severity.INFO: "OK"}


def finding(
    check: str = "xid", severity: Severity = Severity.ERROR, action: RecoveryAction = RESET, unit: str = "GPU-a"
) -> Finding:
    return Finding(check, unit, severity, f"{check} on {unit}", action)


def gpu(*findings: Finding, model: str = "NVIDIA A100-SXM4-80GB", uuid: str = "GPU-a") -> UnitVerdict:
    worst = max((one.severity for one in findings), default=Severity.INFO)
    return UnitVerdict(uuid, STATES[worst], 0.0, findings, model=model)


def verdict(*units: UnitVerdict, node: tuple[Finding, ...] = ()) -> Verdict:
    worst = max((one.severity for one in node), default=Severity.INFO)
    return Verdict("boot", 1.0, units, STATES[worst], node)


def policy(*rules: Rule, **words: str) -> Policy:
    return Policy(rules=rules, **words)  # type: ignore[arg-type]


def ruled(unit: UnitVerdict, *rules: Rule, others: tuple[UnitVerdict, ...] = ()) -> Ruling:
    return ruling_of_unit(unit, verdict(unit, *others), policy(*rules))


def done(unit: UnitVerdict, *rules: Rule, others: tuple[UnitVerdict, ...] = ()) -> str:
    return ruled(unit, *rules, others=others).do


# -- each condition ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        (Rule(), True),
        (Rule(check=("xid",)), True),
        (Rule(check=("gpu-lost", "xid")), True),
        (Rule(check=("gpu-lost",)), False),
        (Rule(severity="info"), True),
        (Rule(severity="error"), True),
        (Rule(action=("reset_gpu",)), True),
        (Rule(action=("reboot_node", "reset_gpu")), True),
        (Rule(action=("reboot_node",)), False),
        (Rule(model="A100"), True),
        (Rule(model="a100*80gb|H100"), True),
        (Rule(model="H100"), False),
        (Rule(units_at_least=1), True),
        (Rule(units_at_least=2), False),
        (Rule(check=("xid",), severity="error", action=("reset_gpu",), model="A100", units_at_least=1), True),
        (Rule(check=("xid",), severity="error", action=("reset_gpu",), model="V100", units_at_least=1), False),
    ],
)
def test_a_finding_fits_a_rule_if_it_fits_each_of_its_conditions(rule: Rule, fits: bool) -> None:
    drain = Rule(**{**vars(rule), "do": "drain"})
    assert done(gpu(finding()), drain) == ("drain" if fits else "retire")


@pytest.mark.parametrize("asked", ["info", "warning", "unknown", "error"])
@pytest.mark.parametrize("found", list(Severity))
def test_a_severity_means_that_or_graver(found: Severity, asked: str) -> None:
    fits = found >= Severity[asked.upper()]
    one = gpu(finding(severity=found, action=NONE))
    assert done(one, Rule(severity=asked, do="drain")) == ("drain" if fits else "tell")


def test_without_a_severity_a_rule_is_about_errors() -> None:
    assert done(gpu(finding("pcie-link", Severity.WARNING)), Rule(do="drain")) == "tell"
    assert done(gpu(finding("pcie-link")), Rule(do="drain")) == "drain"


def test_the_number_of_units_is_of_those_that_fit_the_rest_of_the_rule() -> None:
    lost = tuple(gpu(finding("gpu-lost", unit=name), uuid=name) for name in ("GPU-b", "GPU-c"))
    here = gpu(finding("gpu-lost"))
    assert done(here, Rule(check=("gpu-lost",), units_at_least=3, do="drain"), others=lost) == "drain"
    assert done(here, Rule(check=("gpu-lost",), units_at_least=4, do="drain"), others=lost) == "retire"
    assert done(gpu(finding()), Rule(check=("xid",), units_at_least=2, do="drain"), others=lost) == "retire"
    well = (gpu(uuid="GPU-d"), gpu(uuid="GPU-e"))
    assert done(here, Rule(units_at_least=2, do="drain"), others=well) == "retire"


def test_rules_with_conditions_of_gpus_are_not_about_the_node() -> None:
    one = finding("services", action=REBOOT, unit="")
    for rule in (Rule(model="A100", do="tell"), Rule(units_at_least=1, do="tell")):
        assert ruling_of_node(verdict(gpu(finding()), node=(one,)), policy(rule)).do == "retire"
    assert ruling_of_node(verdict(node=(one,)), policy(Rule(check=("services",), do="tell"))).do == "tell"


# -- what goes before what ---------------------------------------------------------------------------------------------


def test_the_first_rule_that_fits_counts_and_without_one_the_words() -> None:
    xid, anything = Rule(check=("xid",), do="tell"), Rule(do="drain")
    assert done(gpu(finding()), xid, anything) == "tell"
    assert done(gpu(finding()), anything, xid) == "drain"
    assert done(gpu(finding("gpu-lost")), xid) == "retire"
    assert (
        done(gpu(finding(action=RecoveryAction.RESTART_APPLICATION)), Rule(check=("gpu-lost",), do="drain")) == "tell"
    )


def test_each_finding_goes_by_its_own_rule_so_that_a_mild_one_hides_no_grave_one() -> None:
    hot, fallen = finding("temperature", Severity.WARNING, INSPECT), finding("xid", action=RESET)
    tell = Rule(check=("temperature",), severity="warning", do="tell")
    ruling = ruled(gpu(fallen, hot), tell)
    assert (ruling.do, ruling.action, ruling.grounds) == ("retire", RESET, (fallen,))
    assert done(gpu(hot), tell) == "tell"
    assert ruled(gpu(fallen, hot), Rule(check=("xid",), do="tell")).wishes == (), "what is only told decides no other"
    both = ruled(gpu(fallen, hot), Rule(check=("temperature",), severity="warning", do="drain"))
    assert (both.do, both.action) == ("drain", INSPECT)


def test_a_rule_that_only_runs_a_command_leaves_the_rest_to_the_words() -> None:
    one = gpu(finding())
    ruling = ruled(one, Rule(check=("xid",), run="page"))
    assert (ruling.do, list(ruling.runs)) == ("retire", ["page"])
    [run] = decide_commands(verdict(one), policy(Rule(run="page")))
    assert run == RunCommand("page", "GPU-a", finding("gpu-lost")), "the same decision, whatever else is said"
    assert (run.finding, run.about, run.findings, run.do, run.bad_units) == (finding(), one, (finding(),), "retire", 1)


def test_a_command_is_run_for_each_unit_and_the_node_that_it_fits() -> None:
    found = verdict(
        gpu(finding()), gpu(uuid="GPU-b"), gpu(finding(), uuid="GPU-c"), node=(finding("services", unit=""),)
    )
    runs = list(decide_commands(found, policy(Rule(run="page", do="tell"))))
    assert [(run.command, run.unit, run.do) for run in runs] == [
        ("page", "", "tell"),
        ("page", "GPU-a", "tell"),
        ("page", "GPU-c", "tell"),
    ]
    assert list(decide_commands(found, policy())) == []


def test_a_unit_of_which_nothing_is_known_for_long_has_an_error_that_asks_for_a_reset() -> None:
    one = gpu(finding("driver-unresponsive", Severity.UNKNOWN, NONE))
    for now, expected in ((600.0, "tell"), (601.0, "drain")):
        found = Verdict("boot", now, (one,))
        assert ruling_of_unit(one, found, policy(Rule(action=("reset_gpu",), do="drain"))).do == expected
    silent = UnitVerdict("GPU-a", "UNKNOWN", 0.0)
    assert ruling_of_unit(silent, Verdict("boot", 601.0, (silent,)), policy()).do == "retire"


# -- what comes of it --------------------------------------------------------------------------------------------------


def test_a_unit_that_is_only_degraded_is_retired_by_rule_and_stays_so_while_the_rule_fits() -> None:
    narrow = gpu(finding("pcie-link", Severity.WARNING, NONE))
    by_rule = policy(Rule(check=("pcie-link",), severity="warning", do="retire"))
    [retire] = decide_units(verdict(narrow), {}, by_rule)
    assert isinstance(retire, Retire) and (retire.check, retire.action) == ("pcie-link", NONE)
    ours = {"GPU-a": {"by": "agent", "action": "none"}}
    assert list(decide_units(verdict(narrow), ours, by_rule)) == []
    assert list(decide_units(verdict(gpu()), ours, by_rule)) == [Restore("GPU-a")]
    assert list(decide_units(verdict(narrow), ours, policy())) == [Restore("GPU-a")]
    drain = wanted_drain(verdict(narrow), by_rule, spares_units=False, retired={})
    assert drain is not None and "pcie-link" in drain.reason
    assert wanted_drain(verdict(narrow), by_rule, spares_units=True, retired={}) is None


def test_a_reason_names_what_led_to_it_and_not_what_is_only_told() -> None:
    one = gpu(finding("gpu-lost"), finding("xid"))
    drain = wanted_drain(verdict(one), policy(Rule(check=("xid",), do="tell")), spares_units=False, retired={})
    assert drain is not None and "gpu-lost" in drain.reason and "xid" not in drain.reason


def test_a_warning_about_the_node_drains_it_where_a_rule_says_so() -> None:
    found = verdict(node=(finding("infiniband", Severity.WARNING, NONE, ""),))
    assert wanted_drain(found, policy(), spares_units=True, retired={}) is None
    for do in ("retire", "drain"):
        rule = Rule(check=("infiniband",), severity="warning", do=do)
        drain = wanted_drain(found, policy(rule), spares_units=True, retired={})
        assert drain == Drain("gpu-nodeagent/1: infiniband: infiniband on; needs none", NONE), do


def test_a_drain_that_is_to_wait_waits_while_a_job_holds_a_unit() -> None:
    found = verdict(gpu(finding()))
    for one in (policy(Rule(do="drain", drain_when="idle")), policy(reset_gpu="drain", drain_when="idle")):
        drain = wanted_drain(found, one, spares_units=True, retired={})
        assert drain is not None and drain.when_idle
        assert list(decide_node(drain, None, NodeState(False), found, busy=False)) == [drain]
        waiting = AwaitIdle(drain.reason, drain.action)
        assert list(decide_node(drain, None, NodeState(False), found, busy=True)) == [waiting]
        mine = DrainRecord(drain.reason, drain.action)
        assert list(decide_node(drain, mine, NodeState(True, drain.reason), found, busy=True)) == []
    at_once = wanted_drain(found, policy(reset_gpu="drain"), spares_units=True, retired={})
    assert at_once is not None and list(decide_node(at_once, None, NodeState(False), found, busy=True)) == [at_once]


@pytest.mark.parametrize(
    ("rules", "spares", "waits"),
    [
        ((Rule(check=("xid",), do="drain", drain_when="idle"),), False, False),
        ((Rule(check=("xid",), do="drain", drain_when="idle"),), True, True),
        ((Rule(do="drain", drain_when="idle"), Rule(do="drain")), False, True),
        ((Rule(drain_when="idle"),), False, True),
    ],
)
def test_one_reason_to_drain_now_is_enough(rules: tuple[Rule, ...], spares: bool, waits: bool) -> None:
    found = verdict(gpu(finding(), finding("gpu-lost")))
    drain = wanted_drain(found, policy(*rules), spares_units=spares, retired={})
    assert drain is not None and drain.when_idle is waits


# -- as people write it ------------------------------------------------------------------------------------------------

HEAD = "policy:\n  commands: {page: {command: [/usr/bin/page, --gpu]}}\n  rules:\n  - {do: drain}\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("  - {check: xdi, do: tell}\n", 5, "policy.rules.2: check: 'xdi' is no check; did you mean xid?"),
        (
            "  - {check: [xid, site-nhc], do: tell}\n",
            5,
            "policy.rules.2: check: 'site-nhc' is no check; known here: device-files",
        ),
        ("  - {check: site, do: tell}\n", 5, "policy.rules.2: check: 'site' is no check"),
        (
            "  - {do: tell}\n  - {run: pgae}\n",
            6,
            "policy.rules.3: run: 'pgae' is none of policy.commands; did you mean",
        ),
        ("  - {chekc: xid, do: tell}\n", 5, "policy.rules.2: chekc: unknown key; known here: check, severity"),
        ("  - {check: [], do: tell}\n", 5, "policy.rules.2: check: wants a word, or a list of words"),
        ("  - {check: 7, do: tell}\n", 5, "policy.rules.2: check: wants a name"),
        ("  - {severity: critical, do: tell}\n", 5, "policy.rules.2: severity: wants one of info, warning"),
        ("  - {model: 'A[1]', do: tell}\n", 5, "policy.rules.2: model: wants a model"),
        ("  - {units_at_least: 0, do: tell}\n", 5, "policy.rules.2: units_at_least: wants a whole number, 1"),
        ("  - {action: [reset_gpu, reset], do: tell}\n", 5, "policy.rules.2: action: wants one of none"),
        ("  - {do: resume}\n", 5, "policy.rules.2: do: wants one of tell, retire, drain"),
        ("  - {drain_when: later}\n", 5, "policy.rules.2: drain_when: wants one of now, idle"),
        ("  - {do: tell, drain_when: idle}\n", 5, "policy.rules.2: drain_when: with do: tell nothing is drained"),
        ("  - {check: xid}\n", 5, "policy.rules.2: wants do, run or drain_when"),
        ("  - xid\n", 5, "policy.rules.2: wants a mapping with check: …, do: …"),
        ("  drain_when: never\n", 5, "policy.drain_when: wants one of now, idle"),
    ],
)
def test_a_mistake_in_a_rule_names_file_line_and_key(tmp_path: Path, text: str, line: int, words: str) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "config.yaml"
    path.write_text(HEAD + text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    [problem] = caught.value.problems
    assert problem.startswith(f"{path}:{line}: {words}"), problem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rules: {check: xid}", "policy.rules: wants a list"),
        ("commands: [page]", "policy.commands: wants a mapping of names to commands"),
        ("commands: {page: {timeout: 1s}}", "policy.commands: page: wants a command: [/path, …]"),
        ("commands: {page: {command: page me}}", "policy.commands: page: command: wants a list such as"),
        ("commands: {page: {command: [page]}}", "policy.commands: page: command: wants an absolute path"),
        ("commands: {page: {command: [/bin/a], interval: 1s}}", "policy.commands: page: interval: unknown key"),
        ("commands: {page: {command: [/bin/a], timeout: 0}}", "policy.commands: page: timeout: wants a duration above"),
        ("commands: {page me: {command: [/bin/a]}}", "policy.commands: wants a name"),
        ("reset: maybe", "policy.reset: wants one of off, on"),
        ("reset_command: nvidia-smi -r", "policy.reset_command: wants a list such as"),
        ("reset_tries: 0", "policy.reset_tries: wants a whole number, 1 or more"),
        ("reboot: scheduler", "policy.reboot: scheduler: local reboots no node; wants off or command"),
        ("reboot: command", "policy.reboot: command: wants reboot_command to name one of policy.commands"),
        ("{reboot: command, reboot_command: x}", "policy.reboot: command: wants reboot_command to name one of"),
    ],
)
def test_a_mistake_around_rules_names_file_line_and_key(tmp_path: Path, text: str, words: str) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "config.yaml"
    path.write_text(f"policy:\n  {text}\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    [problem] = caught.value.problems
    assert problem.startswith(f"{path}:2: {words}"), problem


def test_rules_are_read_as_people_write_them(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "config.yaml"
    path.write_text(
        "checks: {nhc: {command: [/usr/sbin/nhc]}}\n"
        "policy:\n  commands: {page: {command: [/usr/bin/page, 7], user: nobody, timeout: 1m}}\n  rules:\n"
        "  - {check: [site-nhc, xid], model: A100, action: reset_gpu, do: drain, drain_when: idle}\n"
        "  - {severity: warning, units_at_least: 2, run: page}\n"
    )
    found = load(path).config.policy
    assert found.rules == (
        Rule(("site-nhc", "xid"), model="A100", action=("reset_gpu",), do="drain", drain_when="idle"),
        Rule(severity="warning", units_at_least=2, run="page"),
    )
    assert found.commands == {"page": SiteCommand(("/usr/bin/page", "7"), "nobody", 60.0)}


def test_the_checks_that_rules_may_name_are_those_that_there_are() -> None:
    assert set(OWN_CHECKS) == set(CHECKS) - {NAME} and len(set(OWN_CHECKS)) == len(OWN_CHECKS)
    assert check_name("nhc") == "site-nhc"
