"""Each check: what it finds, how bad it is, which recovery it asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nodeagent.config.model import Health
from nodeagent.gpu.facts import GpuFacts
from nodeagent.health.checks import CHECKS
from nodeagent.health.finding import RecoveryAction, Severity
from nodeagent.health.verdict import clear
from tests.unit.test_health_facts import Cycles, bus, checks_of, gpu, lost, on_bus, uuid

AT_ONCE = Health(default_strikes=1, strikes={})


def test_every_check_finds_nothing_on_a_healthy_node() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), gpu(1))
    assert (cycles.states(), cycles.verdict.node_state) == (["OK", "OK"], "OK")
    assert cycles.verdict.node_findings == ()
    assert [unit.reasons for unit in cycles.verdict.units] == [(), ()]


def test_the_registry_names_every_check_once() -> None:
    assert sorted(CHECKS) == [
        "device-files",
        "driver-init",
        "driver-unresponsive",
        "driver-version",
        "ecc-corrected",
        "ecc-uncorrected",
        "fabric-state",
        "gpu-count",
        "gpu-identity",
        "gpu-lost",
        "gpu-modes",
        "hardware-slowdown",
        "infiniband",
        "kernel-module",
        "memory-held",
        "numa-affinity",
        "nvlink-down",
        "nvlink-errors",
        "pcie-link",
        "pcie-replays",
        "power-readout",
        "probe-crashed",
        "reset-required",
        "retired-pages",
        "rogue-process",
        "row-remapping",
        "services",
        "site",
        "sram-errors",
        "state-space",
        "stuck-readings",
        "sxid",
        "temperature",
        "vbios-version",
        "xid",
    ]


def test_gpu_lost() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), lost(1))
    (reason,) = cycles.unit(1).reasons
    assert (reason.check, reason.action) == ("gpu-lost", RecoveryAction.REBOOT_NODE)
    assert reason.evidence == f"GPU 1 {bus(1)} is lost: NVML answers 15, it has fallen off the bus"
    assert (cycles.states(), cycles.verdict.node_state) == (["OK", "FAILED"], "OK")


def test_a_known_gpu_that_is_listed_no_more_stays_failed_in_the_verdict() -> None:
    cycles = Cycles(Health(expected_gpus=2))
    cycles.see(gpu(0), gpu(1))
    cycles.see(gpu(0))
    assert cycles.states() == ["OK", "FAILED"]
    unit = cycles.unit(1)
    assert (unit.index, unit.minor, unit.bus_id, unit.serial) == (1, 1, bus(1), "S1")
    assert unit.action is RecoveryAction.REBOOT_NODE
    cycles.settings = Health()
    cycles.see(gpu(0), pci=on_bus(2))
    assert cycles.verdict.node_state == "OK", "one lost GPU is not the node's fault where it can be spared"


def test_a_restore_forgets_a_gpu_that_is_gone_but_not_one_that_is_lost() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), gpu(1), gpu(2))
    cycles.see(gpu(0), lost(1))
    cycles.memory = clear(clear(cycles.memory, uuid(1)), uuid(2))
    cycles.see(gpu(0), lost(1))
    assert [unit.uuid for unit in cycles.verdict.units] == [uuid(0), uuid(1)]
    assert cycles.states() == ["OK", "FAILED"]


def test_a_gpu_that_cannot_be_read_for_another_reason_is_unknown() -> None:
    cycles = Cycles()
    cycles.see(replace(lost(0, 4), error_text="Insufficient\nPermissions"))
    assert cycles.state(0) == "UNKNOWN"
    assert cycles.unit(0).reasons[0].evidence.endswith("NVML answers 4 (Insufficient Permissions)")


def test_a_nameless_gpu_is_the_nodes_finding() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), GpuFacts("", index=1, error=15))
    assert (cycles.verdict.node_state, cycles.states()) == ("FAILED", ["OK"])
    assert "GPU 1 (UUID never read) is lost" in cycles.verdict.node_findings[0].evidence


def test_a_nameless_gpu_that_a_missing_one_explains_is_not_counted_twice() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), gpu(1))
    cycles.see(gpu(0), GpuFacts("", index=1, error=15), pci=on_bus(2))
    assert (cycles.verdict.node_state, cycles.states()) == ("OK", ["OK", "FAILED"])


@pytest.mark.parametrize(
    ("value", "state", "action", "words"),
    [
        (1, "FAILED", RecoveryAction.RESET_GPU, "GPU reset (recovery action 1)"),
        (2, "FAILED", RecoveryAction.REBOOT_NODE, "node reboot (recovery action 2)"),
        (3, "FAILED", RecoveryAction.RESET_GPU, "drain P2P (recovery action 3)"),
        (4, "FAILED", RecoveryAction.RESET_GPU, "drain P2P and reset (recovery action 4)"),
        (5, "FAILED", RecoveryAction.REBOOT_NODE, "recover the IMEX domain (recovery action 5)"),
        (6, "FAILED", RecoveryAction.RESET_GPU, "bus reset (recovery action 6)"),
        (7, "FAILED", RecoveryAction.REBOOT_NODE, "system reboot (recovery action 7)"),
        (8, "UNKNOWN", RecoveryAction.NONE, "an unknown recovery action 8"),
    ],
)
def test_the_drivers_recovery_action(value: int, state: str, action: RecoveryAction, words: str) -> None:
    cycles = Cycles()
    cycles.see(gpu(0, recovery_action=value))
    assert (cycles.state(0), cycles.unit(0).action) == (state, action)
    (reason,) = cycles.unit(0).reasons
    assert (reason.check, reason.evidence) == (
        "reset-required",
        f"GPU 0 {bus(0)}: the driver asks for {words}",
    )


@pytest.mark.parametrize("value", [0, None])
def test_a_driver_that_asks_for_nothing(value: int | None) -> None:
    cycles = Cycles()
    cycles.see(gpu(0, recovery_action=value))
    assert (cycles.state(0), cycles.unit(0).reasons) == ("OK", ())


def test_severities_and_actions_are_in_the_order_of_their_gravity_and_have_the_words_of_the_configuration() -> None:
    assert sorted(Severity) == [Severity.INFO, Severity.WARNING, Severity.UNKNOWN, Severity.ERROR]
    words = ["none", "restart_application", "reset_gpu", "reboot_node", "inspect_hardware"]
    assert [action.word for action in sorted(RecoveryAction)] == words
    assert [RecoveryAction.of(word) for word in words] == sorted(RecoveryAction)


def test_reset_required() -> None:
    cycles = Cycles()
    cycles.see(lost(0, 16))
    (reason,) = cycles.unit(0).reasons
    assert (reason.check, reason.action) == ("reset-required", RecoveryAction.RESET_GPU)


@pytest.mark.parametrize(
    ("expected", "listed", "controllers", "state"),
    [
        (2, 2, 2, "OK"),
        (3, 2, 3, "FAILED"),
        (3, 2, None, "FAILED"),
        (1, 2, 2, "DEGRADED"),
        (0, 1, 1, "DEGRADED"),
        (-1, 2, 2, "OK"),
        (-1, 2, 3, "DEGRADED"),
        (2, 2, 3, "OK"),
        (-1, 2, 0, "OK"),
        (-1, 2, None, "OK"),
        (1, 0, 0, "FAILED"),
    ],
)
def test_gpu_count(expected: int, listed: int, controllers: int | None, state: str) -> None:
    cycles = Cycles(Health(expected_gpus=expected))
    cycles.see(*map(gpu, range(listed)), pci=on_bus(controllers))
    assert cycles.verdict.node_state == state
    assert all(unit.state == "OK" for unit in cycles.verdict.units)


@pytest.mark.parametrize("error", [None, 9, 12])
def test_a_node_without_gpus_is_well_and_says_so(error: int | None) -> None:
    cycles = Cycles()
    cycles.see(nvml_error=error, pci=on_bus(0))
    assert cycles.verdict.node_state == "OK"
    (said,) = cycles.verdict.node_findings
    assert (said.severity, said.evidence) == (Severity.INFO, "no NVIDIA GPU on this node: nothing to watch")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, "the driver is not loaded"),
        (12, "libnvidia-ml.so.1 is missing"),
        (18, "versions of driver library and kernel module differ (kernel module 550.1)"),
        (999, "Unknown Error"),
    ],
)
def test_nvml_that_does_not_start_fails_the_node_and_leaves_its_gpus_unknown(code: int, words: str) -> None:
    cycles = Cycles()
    cycles.see(gpu(0))
    for expected in ("OK", "OK", "FAILED"):
        cycles.see(nvml_error=code, nvml_error_text="Unknown\nError", pci=on_bus(1))
        assert cycles.verdict.node_state == expected, "a driver that is being exchanged is no fault yet"
    (finding,) = cycles.verdict.node_findings
    assert (finding.check, finding.action) == ("driver-init", RecoveryAction.REBOOT_NODE)
    assert words in finding.evidence
    assert "\n" not in finding.evidence
    assert (cycles.verdict.node_state, cycles.states()) == ("FAILED", ["UNKNOWN"])


def test_nvml_without_a_driver_fails_also_where_the_bus_was_not_read() -> None:
    cycles = Cycles()
    for _ in range(3):
        cycles.see(nvml_error=12, pci=None)
    assert cycles.verdict.node_state == "FAILED"


def test_a_node_of_which_no_gpus_are_expected_is_well_whatever_card_is_in_it() -> None:
    cycles = Cycles(Health(expected_gpus=0))
    for _ in range(4):
        cycles.see(nvml_error=9, pci=on_bus(1))
    assert cycles.verdict.node_state == "OK"


def test_the_probers_own_trouble_is_no_fault_of_the_driver() -> None:
    cycles = Cycles()
    cycles.see(nvml_error=4, pci=on_bus(1))
    assert cycles.verdict.node_state == "UNKNOWN"


def test_a_gpu_that_hangs_is_failed_and_the_rest_unknown_when_it_persists() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), gpu(1), gpu(2))
    cycles.see(gpu(0), hung=True, hung_uuid=uuid(1), pci=on_bus(3))
    assert cycles.states() == ["OK", "OK", "OK"], "one strike: the previous verdict stands"
    cycles.see(gpu(0), hung=True, hung_uuid=uuid(1), pci=on_bus(3))
    assert cycles.states() == ["OK", "FAILED", "UNKNOWN"]
    assert cycles.unit(1).action is RecoveryAction.RESET_GPU
    assert checks_of(cycles.unit(1).reasons) == ["driver-unresponsive"]
    assert cycles.unit(2).reasons[0].evidence == f"GPU 2 {bus(2)} not read: NVML hangs at GPU 1 {bus(1)}"
    assert cycles.verdict.node_state == "OK"


def test_nvml_that_hangs_as_a_whole_leaves_everything_unknown() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), gpu(1))
    for expected in ("OK", "UNKNOWN", "UNKNOWN"):
        cycles.see(hung=True)
        assert cycles.states() == [expected, expected]
        assert cycles.verdict.node_state == expected
    for expected in ("UNKNOWN", "UNKNOWN", "OK"):
        cycles.see(gpu(0), gpu(1))
        assert (cycles.states(), cycles.verdict.node_state) == ([expected, expected], expected)


def test_a_hang_at_a_gpu_that_was_never_known_is_the_nodes() -> None:
    cycles = Cycles(AT_ONCE)
    cycles.see(gpu(0), hung=True, hung_index=1)
    assert (cycles.verdict.node_state, cycles.states()) == ("FAILED", ["OK"])


def test_a_crash_of_the_probe_proves_nothing() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), gpu(1), gpu(2))
    for expected in ("OK", "UNKNOWN"):
        cycles.see(gpu(0), crashed=11, hung_uuid=uuid(1))
        assert cycles.states() == ["OK", expected, expected]
    assert "killed by signal 11" in cycles.unit(1).reasons[0].evidence
    assert cycles.unit(1).action is RecoveryAction.NONE
    for expected in ("UNKNOWN", "UNKNOWN", "OK"):
        cycles.see(gpu(0), gpu(1), gpu(2))
        assert cycles.states() == ["OK", expected, expected]


def test_a_probe_that_ends_before_any_gpu_leaves_the_node_unknown() -> None:
    cycles = Cycles()
    cycles.see(crashed=0)
    assert cycles.verdict.node_state == "UNKNOWN"
    assert "ended by itself before any GPU" in cycles.verdict.node_findings[0].evidence


def test_a_rise_of_uncorrected_errors_fails_the_gpu_until_the_count_starts_anew() -> None:
    cycles = Cycles()
    cycles.see(gpu(0, ecc_uncorrected=4))
    assert cycles.state(0) == "OK", "errors from before the first reading are nobody's"
    cycles.see(gpu(0, ecc_uncorrected=5))
    (reason,) = cycles.unit(0).reasons
    assert (reason.check, reason.action) == ("ecc-uncorrected", RecoveryAction.RESET_GPU)
    assert reason.evidence == f"1 new uncorrected ECC errors (double bit) on GPU 0 {bus(0)}"
    for count in (5, None, 5, 5, 5):
        cycles.see(gpu(0, ecc_uncorrected=count))
    assert cycles.state(0) == "FAILED"
    for _ in range(3):
        cycles.see(gpu(0, ecc_uncorrected=0))
    assert cycles.state(0) == "OK"


def test_errors_counted_since_a_restart_are_new() -> None:
    cycles = Cycles()
    cycles.see(gpu(0, ecc_uncorrected=4))
    cycles.see(gpu(0, ecc_uncorrected=2))
    assert cycles.state(0) == "FAILED"
    other = Cycles()
    other.see(gpu(0, ecc_uncorrected=4, energy=900.0))
    other.see(gpu(0, ecc_uncorrected=4, energy=1.0))
    assert other.state(0) == "FAILED"


def test_a_restore_takes_the_count_of_then_as_the_new_baseline() -> None:
    cycles = Cycles()
    cycles.see(gpu(0))
    cycles.see(gpu(0, ecc_uncorrected=3))
    cycles.memory = clear(cycles.memory, uuid(0))
    for _ in range(3):
        cycles.see(gpu(0, ecc_uncorrected=3))
    assert cycles.state(0) == "OK"
    cycles.see(gpu(0, ecc_uncorrected=4))
    assert cycles.state(0) == "FAILED"


def test_a_rate_that_a_site_allows() -> None:
    cycles = Cycles(Health(uncorrected_ecc_per_hour=2))
    cycles.see(gpu(0))
    cycles.see(gpu(0, ecc_uncorrected=2))
    assert cycles.state(0) == "OK"
    cycles.now += 3600
    cycles.see(gpu(0, ecc_uncorrected=4))
    assert cycles.state(0) == "OK", "another hour, another baseline"
    cycles.see(gpu(0, ecc_uncorrected=5))
    assert cycles.state(0) == "FAILED"
    assert checks_of(cycles.unit(0).reasons) == ["ecc-uncorrected"]
    cycles.now += 3600
    for _ in range(5):
        cycles.see(gpu(0, ecc_uncorrected=5))
    assert cycles.state(0) == "FAILED", "what was too much stays so until the counter starts anew"
