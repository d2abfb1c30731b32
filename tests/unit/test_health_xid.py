"""The XID table, and how XIDs latch and are let go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nodeagent.config.model import Health
from nodeagent.gpu.facts import XidEvent
from nodeagent.health.checks import CHECKS
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.memory import Memory
from nodeagent.health.scene import observe
from nodeagent.health.verdict import clear, judge
from nodeagent.health.xid import CATALOGUE as NVIDIAS
from nodeagent.health.xid import OVERRIDE, TABLE, UNLISTED, WORKFLOW, Xid, latches, look_up
from tests.unit.test_health_facts import SETTINGS, Cycles, bus, gpu, lost, node, uuid, xid

CATALOGUE = {
    RecoveryAction.NONE: {
        *(37, 38, 43, 44, 45, 63, 66, 67, 92, 93, 121, 137, 141, 154, 157, 160, 161, 171, 172),
        *range(144, 151),
    },
    RecoveryAction.RESTART_APPLICATION: {
        *(8, 11, 13, 25, 31, 32, 39, 40, 41, 60, 68, 69, 70, 71, 72, 75, 76, 77, 80, 82, 83, 84, 85, 86, 88, 89, 94),
        *(*range(96, 106), *range(126, 136), 139),
    },
    RecoveryAction.RESET_GPU: {46, 48, 62, 64, 74, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158},
    RecoveryAction.REBOOT_NODE: {79, 151},
    RecoveryAction.INSPECT_HARDWARE: {54},
}
"""Every number of the table, written down a second time from NVIDIA's catalogue."""


@pytest.mark.parametrize("action", RecoveryAction)
def test_the_table_follows_nvidias_catalogue(action: RecoveryAction) -> None:
    assert {number for number, row in TABLE.items() if row.action is action} == CATALOGUE[action]


def test_where_the_catalogue_has_a_work_flow_the_row_says_so() -> None:
    chosen = {number for number, row in TABLE.items() if row.source == WORKFLOW}
    assert chosen == {45, 48, 74, *range(144, 152), 154}
    assert {row.source for row in TABLE.values()} == {WORKFLOW, NVIDIAS}


@pytest.mark.parametrize("action", RecoveryAction)
def test_what_asks_for_a_reset_or_worse_outlives_its_event(action: RecoveryAction) -> None:
    mild = (RecoveryAction.NONE, RecoveryAction.RESTART_APPLICATION)
    assert latches(Xid(1, "one", action)) is (action not in mild)


def test_every_row_is_kept_under_its_own_number() -> None:
    assert all(number == row.number and row.name and row.source for number, row in TABLE.items())
    assert look_up(39, {}).name == "copy engine 0 error"
    assert look_up(135, {}).name == "copy engine 19 error"
    assert (look_up(98, {}).name, look_up(105, {}).name) == ("NVDEC7 error", "NVJPG7 error")


def test_a_site_has_the_last_word_on_the_action() -> None:
    known = look_up(13, {13: "reset_gpu"})
    assert known == Xid(13, "graphics engine exception", RecoveryAction.RESET_GPU, OVERRIDE)
    assert look_up(79, {79: "none"}).action is RecoveryAction.NONE


def test_an_unknown_number_asks_for_nothing() -> None:
    known = look_up(9999, {})
    assert known == Xid(9999, "meaning unknown", RecoveryAction.NONE, UNLISTED)
    assert not latches(known)


@pytest.mark.parametrize("code", [13, 31, 43, 45, 94, 154, 9999])
def test_an_application_fault_is_told_once_and_changes_nothing(code: int) -> None:
    cycles = Cycles()
    cycles.see(gpu(0))
    cycles.see(gpu(0), xids=(xid(0, code),))
    assert cycles.state(0) == "OK"
    (told,) = cycles.unit(0).reasons
    assert (told.check, told.severity) == ("xid", Severity.INFO)
    assert told.evidence.startswith(f"XID {code} ({look_up(code, {}).name}) on GPU 0 {bus(0)}")
    cycles.see(gpu(0))
    assert cycles.unit(0).reasons == ()


def test_repeats_in_one_cycle_are_one_line() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), xids=(xid(0, 13), xid(0, 13), xid(0, 13)))
    (told,) = cycles.unit(0).reasons
    assert told.evidence.endswith(", 3 times")


def test_a_grave_xid_fails_the_gpu_at_once_and_says_so_in_one_line() -> None:
    cycles = Cycles(Health(default_strikes=3, strikes={"xid": 4}))
    cycles.see(gpu(0), gpu(1), xids=(xid(1, 79),))
    assert cycles.states() == ["OK", "FAILED"]
    (reason,) = cycles.unit(1).reasons
    assert reason.evidence == f"XID 79 (GPU has fallen off the bus) on GPU 1 {bus(1)}"
    assert cycles.unit(1).action is RecoveryAction.REBOOT_NODE


def test_a_grave_xid_stays_although_the_gpu_looks_well() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), xids=(xid(0, 119),))
    for _ in range(50):
        cycles.see(gpu(0, energy=1000.0 + cycles.now))
    assert cycles.state(0) == "FAILED"
    assert "clean cycles" not in cycles.unit(0).reasons[0].evidence


def test_a_grave_xid_that_comes_again_is_one_reason() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), xids=(xid(0, 119), xid(0, 119)))
    cycles.see(gpu(0), xids=(xid(0, 119), xid(0, 48)))
    assert [reason.evidence[:7] for reason in cycles.unit(0).reasons] == ["XID 119", "XID 48 "]


def test_a_latch_ends_when_the_energy_counter_starts_again_and_then_recovers() -> None:
    cycles = Cycles()
    cycles.see(gpu(0, energy=500.0))
    cycles.see(gpu(0, energy=600.0), xids=(xid(0, 119),))
    cycles.see(gpu(0, energy=700.0))
    seen = []
    for reading in (5.0, 75.0, 145.0):
        cycles.see(gpu(0, energy=reading))
        seen.append((cycles.state(0), [reason.evidence[-24:] for reason in cycles.unit(0).reasons]))
    assert seen == [
        ("FAILED", ["now; clean cycles: 1 of 3)"[-24:]]),
        ("FAILED", ["now; clean cycles: 2 of 3)"[-24:]]),
        ("OK", []),
    ]


def test_a_latch_is_measured_by_the_last_reading_not_by_the_one_at_the_xid() -> None:
    cycles = Cycles()
    cycles.see(gpu(0, energy=100.0), xids=(xid(0, 119),))
    cycles.see(gpu(0, energy=90_000.0))
    for reading in (400.0, 500.0, 600.0):  # the agent was away for a while, but 400 < 90000
        cycles.see(gpu(0, energy=reading))
    assert cycles.state(0) == "OK"


def test_a_latch_stays_where_there_is_no_energy_counter() -> None:
    cycles = Cycles()
    cycles.see(gpu(0, energy=None), xids=(xid(0, 119),))
    for _ in range(10):
        cycles.see(gpu(0, energy=None))
    assert cycles.state(0) == "FAILED"


def test_an_xid_in_the_cycle_in_which_the_counter_restarted_is_not_let_go_by_it() -> None:
    cycles = Cycles()
    cycles.see(gpu(0, energy=500.0))
    cycles.see(gpu(0, energy=5.0), xids=(xid(0, 119),))
    for reading in (75.0, 145.0, 215.0, 285.0):
        cycles.see(gpu(0, energy=reading))
    assert cycles.state(0) == "FAILED"


def test_another_boot_forgets_the_latch() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), xids=(xid(0, 79),))
    cycles.see(gpu(0), boot_id="boot-b")
    assert cycles.state(0) == "OK"
    assert cycles.memory.boot_id == "boot-b"


def test_an_unreadable_boot_id_is_not_another_boot() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), xids=(xid(0, 79),))
    cycles.see(gpu(0), boot_id="")
    assert (cycles.state(0), cycles.memory.boot_id) == ("FAILED", "boot-a")


def test_a_restore_lets_the_latch_go_at_once() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), xids=(xid(0, 79),))
    cycles.memory = clear(cycles.memory, uuid(0))
    states = []
    for _ in range(3):
        cycles.see(gpu(0))
        states.append(cycles.state(0))
    assert states == ["OK", "OK", "OK"]


def test_a_restore_does_not_keep_a_new_xid_out() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), xids=(xid(0, 79),))
    cycles.memory = clear(cycles.memory, uuid(0))
    cycles.see(gpu(0), xids=(xid(0, 48),))
    for _ in range(5):
        cycles.see(gpu(0))
    assert cycles.state(0) == "FAILED"
    assert cycles.unit(0).reasons[0].evidence.startswith("XID 48 ")


def test_overrides_latch_and_unlatch() -> None:
    strict = Cycles(Health(xid_actions={13: "inspect_hardware"}))
    strict.see(gpu(0), xids=(xid(0, 13),))
    strict.see(gpu(0))
    assert (strict.state(0), strict.unit(0).action) == ("FAILED", RecoveryAction.INSPECT_HARDWARE)
    mild = Cycles()
    mild.see(gpu(0), xids=(xid(0, 48),))
    mild.settings = Health(xid_actions={48: "restart_application"})
    for _ in range(SETTINGS.recover):
        mild.see(gpu(0))
    assert mild.state(0) == "OK"


def test_an_xid_of_a_gpu_that_is_gone_is_put_to_it_by_its_bus_id() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), gpu(1))
    cycles.see(gpu(0), lost(1), xids=(xid(1, 79, uuid=""),))
    assert "xid" in [reason.check for reason in cycles.unit(1).reasons]


def test_an_xid_that_comes_before_the_gpu_was_read_is_not_lost() -> None:
    cycles = Cycles()
    cycles.see(hung=True, xids=(xid(3, 79),))
    assert cycles.state(3) == "FAILED"
    assert cycles.unit(3).bus_id == bus(3)


def test_an_xid_of_an_unknown_gpu_degrades_the_node() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), xids=(xid(9, 79, uuid=""),))
    assert (cycles.verdict.node_state, cycles.states()) == ("DEGRADED", ["OK"])
    assert bus(9) in cycles.verdict.node_findings[0].evidence


def test_a_mig_instance_is_named() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), xids=(xid(0, 13, gpu_instance=2, compute_instance=0), replace(xid(0, 95), gpu_instance=1)))
    assert [reason.evidence for reason in cycles.unit(0).reasons] == [
        f"XID 95 (uncontained memory error) on GPU 0 {bus(0)} MIG GI 1",
        f"XID 13 (graphics engine exception) on GPU 0 {bus(0)} MIG GI 2 CI 0",
    ]


NAMELESS = "that never told its UUID"
NONE, RESTART, REBOOT = RecoveryAction.NONE, RecoveryAction.RESTART_APPLICATION, RecoveryAction.REBOOT_NODE


@pytest.mark.parametrize(
    ("events", "told"),
    [
        (
            (xid(0, 13),),
            (uuid(0), Severity.INFO, f"XID 13 (graphics engine exception) on GPU 0 {bus(0)}", RESTART),
        ),
        (
            (xid(7, 13),),
            (uuid(7), Severity.INFO, f"XID 13 (graphics engine exception) on GPU {uuid(7)}", RESTART),
        ),
        (
            (xid(0, 79, late=True),),
            (
                *(uuid(0), Severity.INFO),
                f"XID 79 (GPU has fallen off the bus) on GPU 0 {bus(0)} while no agent listened; "
                "the GPU has been initialised anew since",
                REBOOT,
            ),
        ),
        (
            (xid(9, 79, uuid="", gpu_instance=3),) * 2,
            (
                *("", Severity.WARNING),
                f"XID 79 (GPU has fallen off the bus) on a GPU at {bus(9)} {NAMELESS} MIG GI 3, 2 times",
                REBOOT,
            ),
        ),
        (
            (xid(9, 13, uuid="", bus_id=""),),
            (
                *("", Severity.INFO),
                f"XID 13 (graphics engine exception) on a GPU at an unknown place {NAMELESS}",
                NONE,
            ),
        ),
    ],
)
def test_what_is_told_of_an_xid(events: tuple[XidEvent, ...], told: tuple[str, Severity, str, RecoveryAction]) -> None:
    memory = judge(Memory(), node(gpu(0, energy=2000.0)), SETTINGS)[1]
    scene = observe(memory, node(gpu(0), xids=events), SETTINGS)
    assert list(CHECKS["xid"](scene, SETTINGS)) == [Finding("xid", *told)]
