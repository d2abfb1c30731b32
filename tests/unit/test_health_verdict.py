"""When a verdict changes and when it is taken back; that a judgement can be replayed and kept over a restart."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.config.model import Health
from nodeagent.config.values import Within
from nodeagent.errors import UnknownFormat
from nodeagent.gpu.facts import NodeFacts
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.memory import Memory, UnitMemory, clear, from_plain, to_plain
from nodeagent.health.standing import weigh
from nodeagent.health.verdict import judge
from tests.unit.test_health_facts import BOOT, Cycles, checks_of, gpu, lost, node, on_bus, uuid, xid

RECOVER_2 = Health(recover=2)


def finding(check: str, severity: Severity, action: RecoveryAction = RecoveryAction.NONE) -> Finding:
    return Finding(check, "u", severity, f"{check} {severity.name}", action)


class Unit:
    """Weighs the findings of one unit, cycle after cycle."""

    def __init__(self, config: Health) -> None:
        self.config = config
        self.memory = UnitMemory("u")
        self.reasons: tuple[Finding, ...] = ()
        self.now = 1000.0

    def see(self, *findings: Finding, judged: bool = True, after: float = 1.0) -> str:
        self.now += after
        weighed = weigh(self.memory, findings, judged, self.now, self.config)
        self.memory, self.reasons = weighed.memory, weighed.reasons
        return self.memory.state


WARN, BAD, DOUBT = finding("w", Severity.WARNING), finding("e", Severity.ERROR), finding("d", Severity.UNKNOWN)
INFO = finding("i", Severity.INFO, RecoveryAction.RESTART_APPLICATION)


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        ((), "OK"),
        ((INFO,), "OK"),
        ((WARN,), "DEGRADED"),
        ((DOUBT,), "UNKNOWN"),
        ((WARN, DOUBT), "UNKNOWN"),
        ((BAD, DOUBT, WARN), "FAILED"),
    ],
)
def test_the_worst_finding_makes_the_state(seen: tuple[Finding, ...], state: str) -> None:
    unit = Unit(Health())
    assert unit.see(*seen) == state
    assert [one.severity for one in unit.reasons] == sorted((one.severity for one in seen), reverse=True)


def test_the_gravest_action_comes_first_among_equals() -> None:
    unit = Unit(Health())
    unit.see(
        finding("a", Severity.ERROR, RecoveryAction.RESET_GPU), finding("b", Severity.ERROR, RecoveryAction.REBOOT_NODE)
    )
    assert checks_of(unit.reasons) == ["b", "a"]


def test_a_finding_counts_after_its_strikes_in_a_row() -> None:
    unit = Unit(Health(strikes={"e": 3}))
    unit.see()
    assert [unit.see(BAD), unit.see(BAD), unit.see(), unit.see(BAD), unit.see(BAD)] == ["OK"] * 5
    assert unit.reasons == (), "what does not count yet is no reason"
    assert unit.see(BAD) == "FAILED"


def test_a_cycle_without_reading_neither_adds_a_strike_nor_ends_the_row() -> None:
    unit = Unit(Health(strikes={"e": 2, "d": 9}))
    unit.see()
    states = [unit.see(BAD), unit.see(DOUBT, judged=False), unit.see(DOUBT, judged=False), unit.see(BAD)]
    assert states == ["OK", "OK", "OK", "FAILED"]


def test_default_strikes_hold_for_checks_without_their_own() -> None:
    unit = Unit(Health(default_strikes=2, strikes={"w": 1}))
    unit.see()
    assert unit.see(BAD) == "OK"
    assert unit.see(BAD, WARN) == "FAILED"
    assert checks_of(unit.reasons) == ["e", "w"]


def test_a_unit_that_never_had_a_verdict_is_unknown_while_a_grave_finding_gathers_strikes() -> None:
    unit = Unit(Health(strikes={"e": 3, "w": 3}))
    assert unit.see(BAD) == "UNKNOWN"
    assert unit.reasons[0].evidence == "e ERROR (seen 1 of 3 times)"
    assert Unit(Health(strikes={"w": 3})).see(WARN) == "OK", "a gathering warning does not keep a new GPU out"


def test_strikes_within_a_time_count_in_a_row_or_not() -> None:
    unit = Unit(Health(strikes={"e": Within(3, 60.0)}, recover=1))
    unit.see()
    assert [unit.see(BAD), unit.see(), unit.see(BAD), unit.see(), unit.see(BAD)] == ["OK"] * 4 + ["FAILED"]
    late = Unit(Health(strikes={"e": Within(3, 60.0)}))
    late.see()
    assert [late.see(BAD, after=40) for _ in range(20)] == ["OK"] * 20, "three never fall into one minute"
    assert len(late.memory.stamps["e"]) == 2, "what can count no more is not kept"


def test_what_counted_within_a_time_does_not_come_and_go() -> None:
    unit = Unit(Health(strikes={"e": Within(2, 60.0)}, recover=1))
    assert [unit.see(BAD), unit.see(BAD)] == ["UNKNOWN", "FAILED"]
    assert [unit.see(after=30), unit.see(after=30)] == ["FAILED", "FAILED"]
    assert unit.reasons[0].evidence == "e ERROR (not seen now; clean cycles: 2 of 1, clean for 30 of 60 s)"
    assert unit.see(after=30) == "OK"


def test_a_finding_counts_after_its_dwell_time_which_an_unread_cycle_does_not_end() -> None:
    unit = Unit(Health(dwell={"e": 30.0}))
    assert [unit.see(BAD), unit.see(BAD, after=20), unit.see(judged=False, after=5)] == ["UNKNOWN"] * 3
    assert unit.see(BAD, after=4) == "UNKNOWN"
    assert unit.reasons[0].evidence == "e ERROR (stands for 29 of 30 s)"
    assert unit.see(BAD) == "FAILED"
    passing = Unit(Health(dwell={"e": 30.0}))
    assert [passing.see(BAD), passing.see(after=20), passing.see(BAD, after=20)] == ["UNKNOWN", "OK", "OK"]


def test_coming_back_takes_its_time_too_where_a_check_has_one() -> None:
    unit = Unit(Health(recover=2, recover_after={"e": 100.0}))
    unit.see(BAD)
    assert [unit.see(after=50), unit.see(after=50), unit.see(after=49)] == ["FAILED"] * 3
    assert unit.see(BAD) == "FAILED"
    assert [unit.see(after=50), unit.see(after=99), unit.see()] == ["FAILED", "FAILED", "OK"], "the time began anew"
    other = Unit(Health(recover=2, recover_after={"e": 100.0}))
    other.see(finding("x", Severity.ERROR))
    assert [other.see(), other.see()] == ["FAILED", "OK"]


def test_a_clean_time_is_no_substitute_for_clean_cycles() -> None:
    unit = Unit(Health(recover=3, recover_after={"e": 10.0}))
    unit.see(BAD)
    assert [unit.see(after=500), unit.see(after=500), unit.see(after=500)] == ["FAILED", "FAILED", "OK"]


def test_findings_wait_until_the_node_has_settled_after_its_boot() -> None:
    unit = Unit(Health(settle=60.0))
    unit.now = 20.0
    assert unit.see() == "OK"
    assert unit.see(BAD) == "UNKNOWN", "not granted, and nothing is done about it"
    assert unit.reasons[0].evidence == "e ERROR (counts from 60 s after the boot on)"
    assert unit.see(WARN) == "OK"
    assert unit.see(BAD, after=60) == "FAILED"
    fleeting = Unit(Health(settle=60.0))
    fleeting.now = 20.0
    assert [fleeting.see(BAD), fleeting.see(), fleeting.see(after=60)] == ["UNKNOWN", "OK", "OK"]


def test_an_xid_does_not_wait_for_anything() -> None:
    rules = Health(strikes={"xid": Within(3, 60.0)}, dwell={"xid": 60.0}, settle=1e6)
    cycles = Cycles(rules)
    cycles.see(gpu(0))
    assert cycles.see(gpu(0), xids=(xid(0, 79),)).units[0].state == "FAILED"


def test_an_xid_that_nobody_saw_counts_unless_the_gpu_was_initialised_anew_since() -> None:
    late = xid(0, 79, late=True, monotonic=50.0)
    cycles = Cycles()
    cycles.see(gpu(0))
    assert cycles.see(gpu(0, energy=2000.0), xids=(late,)).units[0].state == "FAILED"
    mended = Cycles()
    mended.see(gpu(0))
    verdict = mended.see(gpu(0, energy=1.0), xids=(late,))
    assert (verdict.units[0].state, mended.memory.units[uuid(0)].latches) == ("OK", ())
    [told] = verdict.units[0].reasons
    assert told.severity is Severity.INFO
    assert told.evidence.endswith("while no agent listened; the GPU has been initialised anew since")
    live = Cycles()
    live.see(gpu(0))
    assert live.see(gpu(0, energy=1.0), xids=(xid(0, 79),)).units[0].state == "FAILED", "one that comes now is after it"


def test_a_grave_xid_that_comes_again_is_counted() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), xids=(xid(0, 79), xid(0, 79)))
    assert cycles.unit(0).reasons[0].evidence.endswith(", 2 times")
    cycles.see(gpu(0), xids=(xid(0, 79),))
    assert cycles.unit(0).reasons[0].evidence.endswith(", 3 times")
    assert from_plain(to_plain(cycles.memory)) == cycles.memory


def test_the_last_record_of_the_kernel_s_is_remembered_within_its_boot() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), kernel_sequence=17)
    cycles.see(gpu(0))
    assert from_plain(to_plain(cycles.memory)).kernel_sequence == 17
    old = to_plain(cycles.memory)
    del old["kernel_sequence"]
    assert from_plain(old).kernel_sequence is None
    cycles.see(gpu(0), boot_id="boot-b")
    assert cycles.memory.kernel_sequence is None


def test_rules_survive_a_restart_and_an_older_release_s_memory_is_taken_up() -> None:
    unit = Unit(Health(strikes={"e": Within(3, 60.0)}, dwell={"e": 2.0}, recover_after={"w": 50.0}))
    unit.see(BAD, WARN)
    unit.see(BAD)
    plain = json.loads(json.dumps(to_plain(Memory(BOOT, units={"u": unit.memory}))))
    assert from_plain(plain).units["u"] == unit.memory
    unit.memory = from_plain(plain).units["u"]
    assert unit.see(BAD) == "FAILED"
    for key in ("rows", "stamps"):
        del plain["units"][0][key]
    del plain["units"][0]["standing"][0]["clean_since"]
    assert from_plain(plain).units["u"].strikes == {"e": 2}


def test_coming_back_takes_clean_cycles_in_a_row_and_says_what_is_missing() -> None:
    unit = Unit(Health(recover=3))
    unit.see(BAD)
    assert [unit.see(), unit.see()] == ["FAILED", "FAILED"]
    assert unit.reasons[0].evidence == "e ERROR (not seen now; clean cycles: 2 of 3)"
    assert unit.see(BAD) == "FAILED"
    assert [unit.see(), unit.see(), unit.see()] == ["FAILED", "FAILED", "OK"]
    assert unit.reasons == ()


def test_degraded_comes_back_by_the_same_rule() -> None:
    unit = Unit(RECOVER_2)
    unit.see(WARN)
    assert [unit.see(), unit.see()] == ["DEGRADED", "OK"]


def test_a_cycle_in_doubt_is_not_a_clean_one() -> None:
    unit = Unit(RECOVER_2)
    unit.see(BAD)
    assert [unit.see(), unit.see(DOUBT), unit.see(), unit.see(judged=False), unit.see()] == ["FAILED"] * 5
    assert unit.see() == "OK"


def test_a_fault_that_gathers_strikes_again_is_not_a_clean_cycle() -> None:
    unit = Unit(Health(recover=2, strikes={"other": 9}))
    unit.see(BAD)
    other = finding("other", Severity.ERROR)
    assert [unit.see(other), unit.see(other), unit.see(other)] == ["FAILED"] * 3
    assert [unit.see(), unit.see()] == ["FAILED", "OK"]


def test_a_milder_fault_that_stays_does_not_hold_a_failed_unit_for_ever() -> None:
    unit = Unit(RECOVER_2)
    unit.see(BAD, WARN)
    assert [unit.see(WARN), unit.see(WARN)] == ["FAILED", "DEGRADED"]


def test_a_check_that_finds_something_milder_has_not_taken_the_graver_back() -> None:
    unit = Unit(RECOVER_2)
    unit.see(finding("c", Severity.ERROR))
    mild = finding("c", Severity.WARNING)
    assert [unit.see(mild), unit.see(mild)] == ["FAILED", "DEGRADED"]
    assert unit.see(finding("c", Severity.ERROR)) == "FAILED"
    assert [reason.severity for reason in unit.reasons] == [Severity.ERROR], (
        "the graver word of a check replaces the milder"
    )


def test_a_doubt_on_top_does_not_wash_a_fault_away() -> None:
    unit = Unit(RECOVER_2)
    unit.see(WARN)
    assert [unit.see(DOUBT), unit.see(DOUBT), unit.see()] == ["UNKNOWN"] * 3
    assert {reason.check for reason in unit.reasons} == {"w", "d"}
    assert unit.see() == "OK"


def test_a_check_that_cannot_say_any_more_does_not_take_its_word_back() -> None:
    unit = Unit(RECOVER_2)
    unit.see(finding("c", Severity.WARNING))
    assert unit.see(finding("c", Severity.UNKNOWN)) == "UNKNOWN"
    assert [reason.severity for reason in unit.reasons] == [Severity.UNKNOWN, Severity.WARNING]
    assert unit.see(finding("c", Severity.ERROR)) == "FAILED"
    assert [reason.severity for reason in unit.reasons] == [Severity.ERROR]


def test_doubt_ends_like_everything_else_after_readings_enough() -> None:
    unit = Unit(Health())
    unit.see()
    assert [unit.see(DOUBT), *(unit.see() for _ in range(3))] == ["UNKNOWN"] * 3 + ["OK"]


def test_since_is_when_the_state_changed() -> None:
    unit = Unit(Health())
    seen = []
    for found in ((), (), (BAD,), (BAD,), ()):
        unit.see(*found)
        seen.append(unit.memory.since)
    assert seen == [1001.0, 1001.0, 1003.0, 1003.0, 1003.0]


def test_a_healthy_gpu_is_ok_at_first_sight_and_the_verdict_says_when() -> None:
    cycles = Cycles(Health(recover=99, default_strikes=99))
    verdict = cycles.see(gpu(1), gpu(0))
    assert [unit.index for unit in verdict.units] == [0, 1]
    assert [(unit.state, unit.since) for unit in verdict.units] == [("OK", 110.0)] * 2
    assert (verdict.boot_id, verdict.monotonic, verdict.node_state) == (BOOT, 110.0, "OK")


def test_a_gpu_that_hangs_at_first_sight_is_unknown() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), hung=True, hung_uuid=uuid(1), hung_index=1)
    assert cycles.states() == ["OK", "UNKNOWN"]
    assert cycles.unit(1).index == 1


def test_a_lost_gpu_that_comes_back_has_to_prove_itself() -> None:
    cycles = Cycles(RECOVER_2)
    cycles.see(gpu(0))
    states = []
    for seen in (lost(0), gpu(0), lost(0), gpu(0), gpu(0)):
        cycles.see(seen)
        states.append(cycles.state(0))
    assert states == ["FAILED", "FAILED", "FAILED", "FAILED", "OK"]


def test_what_was_found_before_a_gpu_was_lost_is_not_taken_back_while_it_is_lost() -> None:
    cycles = Cycles(RECOVER_2)
    cycles.see(gpu(0, recovery_action=1))
    for _ in range(4):
        cycles.see(lost(0))
    assert checks_of(cycles.unit(0).reasons) == ["gpu-lost", "reset-required"]


def test_a_restore_ends_the_wait_for_clean_cycles() -> None:
    cycles = Cycles()
    cycles.see(lost(0))
    states = []
    for number in range(5):
        if number == 2:
            cycles.memory = clear(cycles.memory, uuid(0))
        cycles.see(gpu(0))
        states.append(cycles.state(0))
    assert states == ["FAILED"] * 2 + ["OK"] * 3


def test_another_boot_forgets_everything() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), lost(1))
    cycles.see(gpu(0), boot_id="boot-b")
    assert [unit.uuid for unit in cycles.verdict.units] == [uuid(0)]


def test_a_milder_finding_does_not_make_the_way_out_of_a_graver_one_longer() -> None:
    cycles = Cycles()
    cycles.see(gpu(0, recovery_action=1, remap_banks_exhausted=1))
    assert [reason.action for reason in cycles.unit(0).reasons] == [
        RecoveryAction.RESET_GPU,
        RecoveryAction.INSPECT_HARDWARE,
    ]
    assert cycles.unit(0).action is RecoveryAction.RESET_GPU
    cycles.see(gpu(0, recovery_action=9, remap_banks_exhausted=1), gpu(1, remap_banks_exhausted=1))
    assert cycles.unit(1).action is RecoveryAction.INSPECT_HARDWARE


def test_clear_of_an_unknown_gpu_changes_nothing() -> None:
    memory = Memory(BOOT, units={"a": UnitMemory("a")})
    assert clear(memory, "b") is memory


FAULTS = st.sampled_from(
    [
        *({}, {}, {}, {"recovery_action": 1}, {"recovery_action": 9}, {"ecc_uncorrected": 3}, {"error": 15}),
        *({"energy": 1.0}, {"slowdown_reasons": 0x48}, {"slowdown_reasons": 1}, {"nvlink_recoveries": 1}),
        *({"nvlink_recoveries": 0}, {"pcie_width": 8, "pcie_width_max": 16}, {"fabric_state": 2}, {"power": 1.0}),
    ]
)


def sweep_of(faults: list[dict[str, object]], codes: list[int], trouble: str) -> NodeFacts:
    """Return a sweep of GPUs with these faults; the trouble is of NVML as a whole, of the second GPU, or none."""
    events = tuple(xid(number, code) for number, code in enumerate(codes))
    gpus = [gpu(number, **fault) for number, fault in enumerate(faults)]
    if trouble == "mismatch":
        return node(nvml_error=18, pci=on_bus(3), xids=events)
    if trouble == "hung":
        return node(gpus[0], hung=True, hung_uuid=uuid(1), pci=on_bus(3), xids=events)
    return node(*gpus, pci=on_bus(3), xids=events)


SWEEPS = st.builds(
    sweep_of,
    st.lists(FAULTS, min_size=1, max_size=3),
    st.lists(st.sampled_from([13, 79, 154]), max_size=1),
    st.sampled_from(["", "", "", "", "hung", "mismatch"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(SWEEPS, min_size=1, max_size=12))
def test_a_judgement_is_the_same_when_replayed_and_after_a_restart(sweeps: list[NodeFacts]) -> None:
    config = Health(recover=2)
    live, restarted = Memory(), Memory()
    for number, sweep in enumerate(sweeps):
        facts = replace(sweep, monotonic=10.0 * number)
        before = copy.deepcopy(live)
        verdict, after = judge(live, facts, config)
        assert live == before, "the memory that came in is left as it was"
        assert judge(live, facts, config) == (verdict, after)
        assert judge(restarted, facts, config)[0] == verdict
        live, restarted = after, from_plain(json.loads(json.dumps(to_plain(after))))
        assert restarted == live


@settings(max_examples=60, deadline=None)
@given(st.lists(SWEEPS, min_size=2, max_size=15))
def test_no_unit_is_ok_while_it_is_in_doubt_or_before_it_has_recovered(sweeps: list[NodeFacts]) -> None:
    cycles = Cycles(Health(recover=2, strikes={}))
    clean: dict[str, int] = {}
    for sweep in sweeps:
        verdict = cycles.judge(sweep)
        read = {one.uuid for one in sweep.gpus if one.error is None} if sweep.nvml_error is None else set()
        for unit in verdict.units:
            grave = [one for one in unit.reasons if one.severity > Severity.INFO and "not seen now" not in one.evidence]
            well = unit.uuid in read and not grave
            if grave and any(one.severity is Severity.ERROR for one in grave):
                clean[unit.uuid] = 0
            elif unit.uuid in clean:
                clean[unit.uuid] = clean[unit.uuid] + 1 if well else 0
            if unit.state == "OK":
                assert well
                assert clean.pop(unit.uuid, 99) >= 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda plain: {},
        lambda plain: {**plain, "format": 2},
        lambda plain: {**plain, "units": [{}]},
        lambda plain: {**plain, "units": [{**plain["units"][0], "more": 1}]},
        lambda plain: {**plain, "node": {**plain["node"], "standing": [{"clean": 0, "findings": []}]}},
        lambda plain: [],
    ],
)
def test_a_damaged_memory_is_refused(damage: object) -> None:
    cycles = Cycles()
    cycles.see(gpu(0), xids=(xid(0, 79),))
    with pytest.raises(UnknownFormat):
        from_plain(damage(json.loads(json.dumps(to_plain(cycles.memory)))))  # type: ignore[operator]
