"""The checks of what the site wants: modes, versions, identity."""

from __future__ import annotations

import pytest

from nodeagent.config.model import Health
from nodeagent.config.thresholds import Expect
from nodeagent.gpu.facts import GpuFacts
from nodeagent.health.finding import RecoveryAction, Severity
from tests.unit.test_health_facts import Cycles, bus, checks_of, gpu, lost, uuid

PLACE = f"GPU 0 {bus(0)}"
NONE, RESET, INSPECT = RecoveryAction.NONE, RecoveryAction.RESET_GPU, RecoveryAction.INSPECT_HARDWARE
WISH = Health(expect=Expect(persistence="on", compute_mode="exclusive_process", ecc="on", mig="off"))
AS_WANTED = {"persistence": True, "compute_mode": 3, "ecc_enabled": True, "mig_enabled": False}


@pytest.mark.parametrize(
    ("value", "action", "evidence"),
    [
        ({"persistence": False}, NONE, f"persistence mode of {PLACE} is off, and on is wanted"),
        ({"compute_mode": 0}, NONE, f"compute mode of {PLACE} is default, and exclusive_process is wanted"),
        ({"compute_mode": 1}, NONE, f"compute mode of {PLACE} is exclusive_thread, and exclusive_process is wanted"),
        ({"compute_mode": 2}, NONE, f"compute mode of {PLACE} is prohibited, and exclusive_process is wanted"),
        ({"compute_mode": 9}, NONE, f"compute mode of {PLACE} is 9, and exclusive_process is wanted"),
        ({"ecc_enabled": False}, RESET, f"ECC of {PLACE} is off, and on is wanted"),
        ({"mig_enabled": True}, RESET, f"MIG mode of {PLACE} is on, and off is wanted"),
    ],
)
def test_a_mode_that_is_not_wanted(value: dict[str, object], action: RecoveryAction, evidence: str) -> None:
    cycles = Cycles(WISH)
    cycles.see(gpu(0, **AS_WANTED), gpu(1, **AS_WANTED))
    assert cycles.states() == ["OK", "OK"]
    cycles.see(gpu(0, **{**AS_WANTED, **value}), gpu(1, **AS_WANTED))
    assert cycles.states() == ["DEGRADED", "OK"]
    (reason,) = cycles.unit(0).reasons
    assert (reason.check, reason.severity, reason.action) == ("gpu-modes", Severity.WARNING, action)
    assert reason.evidence == evidence
    for _ in range(3):
        cycles.see(gpu(0, **AS_WANTED), gpu(1, **AS_WANTED))
    assert cycles.state(0) == "OK"
    free = Cycles()
    free.see(gpu(0, **{**AS_WANTED, **value}))
    assert free.state(0) == "OK", "nobody has said what is wanted"


def test_modes_that_are_not_known_are_not_judged() -> None:
    cycles = Cycles(WISH)
    cycles.see(gpu(0, **dict.fromkeys(AS_WANTED)))
    assert cycles.state(0) == "OK"


@pytest.mark.parametrize(
    ("wanted", "driver", "module", "state"),
    [
        ((), "550.1", "550.1", "OK"),
        (("550.*",), "550.1", "550.1", "OK"),
        (("535.1", "550.1"), "550.1", "550.1", "OK"),
        (("535.*",), "550.1", "550.1", "DEGRADED"),
        (("535.*",), "", "", "OK"),
        ((), "550.1", "", "OK"),
        ((), "550.1", "535.1", "DEGRADED"),
    ],
)
def test_the_drivers_version(wanted: tuple[str, ...], driver: str, module: str, state: str) -> None:
    cycles = Cycles(Health(expect=Expect(drivers=wanted)))
    cycles.see(gpu(0), driver=driver, kernel_driver=module)
    assert (cycles.verdict.node_state, cycles.state(0)) == (state, "OK")
    assert checks_of(cycles.verdict.node_findings) == ([] if state == "OK" else ["driver-version"])


def test_the_words_and_the_way_out_of_a_wrong_driver() -> None:
    cycles = Cycles(Health(expect=Expect(drivers=("535.*", "545.2"))))
    cycles.see(gpu(0), driver="550.1", kernel_driver="550.2")
    assert [(one.evidence, one.action) for one in cycles.verdict.node_findings] == [
        (
            "NVML says driver 550.1, and the kernel module that is loaded is 550.2",
            RecoveryAction.REBOOT_NODE,
        ),
        ("driver 550.1 is loaded, and 535.* or 545.2 is wanted", NONE),
    ]
    cycles.settings = Health()
    for _ in range(3):
        cycles.see(gpu(0))
    assert cycles.verdict.node_state == "OK"


def test_firmware_that_is_not_wanted() -> None:
    cycles = Cycles(Health(expect=Expect(vbios=("96.00.*", "95.1"))))
    cycles.see(gpu(0, vbios="97.0"), gpu(1, vbios="96.00.61"), gpu(2, vbios="95.1", name="other"), gpu(3))
    assert cycles.states() == ["DEGRADED", "OK", "OK", "OK"]
    (reason,) = cycles.unit(0).reasons
    assert (reason.check, reason.severity, reason.action) == ("vbios-version", Severity.WARNING, NONE)
    assert reason.evidence == f"VBIOS of {PLACE} is 97.0, and 96.00.* or 95.1 is wanted"


def test_mixed_firmware_of_one_model_is_told_and_changes_nothing() -> None:
    cycles = Cycles()
    cycles.see(gpu(0, vbios="2"), gpu(1, vbios="1"), gpu(2, vbios="3", name="other"), gpu(3, name="other"))
    assert (cycles.states(), cycles.verdict.node_state) == (["OK"] * 4, "OK")
    (said,) = cycles.verdict.node_findings
    assert (said.check, said.severity) == ("vbios-version", Severity.INFO)
    assert said.evidence == "VBIOS of NVIDIA H100 are mixed: 1, 2"
    cycles.see(gpu(0, vbios="2"), gpu(1, vbios="2"))
    assert cycles.verdict.node_findings == ()
    cycles.see(gpu(2, vbios="2", name=""), gpu(3, vbios="1", name=""))
    assert [one.evidence for one in cycles.verdict.node_findings] == ["VBIOS of GPUs of no name are mixed: 1, 2"]


def listed(*names: str) -> Cycles:
    return Cycles(Health(expect=Expect(gpus=names)))


@pytest.mark.parametrize("names", [(), ("S0", "S1"), (uuid(0), uuid(1)), (uuid(0), "S1")])
def test_a_list_that_agrees(names: tuple[str, ...]) -> None:
    cycles = listed(*names)
    cycles.see(gpu(0), gpu(1))
    assert (cycles.states(), cycles.verdict.node_findings) == (["OK", "OK"], ())


def test_an_exchanged_gpu_is_told_on_both_sides() -> None:
    cycles = listed("S0", "S9")
    cycles.see(gpu(0), gpu(1))
    assert (cycles.states(), cycles.verdict.node_state) == (["OK", "DEGRADED"], "DEGRADED")
    (reason,) = cycles.unit(1).reasons
    assert (reason.check, reason.severity, reason.action) == ("gpu-identity", Severity.WARNING, INSPECT)
    assert reason.evidence == f"GPU 1 {bus(1)} (serial S1, {uuid(1)}) is not in this node's list"
    (missing,) = cycles.verdict.node_findings
    assert (missing.check, missing.severity, missing.action) == ("gpu-identity", Severity.WARNING, INSPECT)
    assert missing.evidence == "GPU S9 is in this node's list and not in the node"
    cycles.settings = Health(expect=Expect(gpus=("S0", "S1")))
    for _ in range(3):
        cycles.see(gpu(0), gpu(1))
    assert (cycles.states(), cycles.verdict.node_state) == (["OK", "OK"], "OK")


def test_a_gpu_that_is_lost_or_gone_is_not_missed_twice() -> None:
    cycles = listed("S0", "S1", "S2")
    cycles.see(gpu(0), gpu(1), gpu(2))
    cycles.see(gpu(0), lost(1))
    assert cycles.verdict.node_findings == ()
    assert [checks_of(unit.reasons) for unit in cycles.verdict.units] == [[], ["gpu-lost"], ["gpu-lost"]]


def test_a_serial_that_is_not_known_is_held_against_nobody() -> None:
    cycles = listed("S0", "S1")
    cycles.see(gpu(0), gpu(1, serial=""))
    assert (cycles.states(), cycles.verdict.node_findings) == (["OK", "OK"], ())
    cycles = listed(uuid(0))
    cycles.see(gpu(0, serial=""), gpu(1, serial=""))
    assert cycles.states() == ["OK", "DEGRADED"]
    (reason,) = cycles.unit(1).reasons
    assert reason.evidence == f"GPU 1 {bus(1)} (serial unknown, {uuid(1)}) is not in this node's list"


def test_a_gpu_that_never_told_who_it_is_may_be_the_one_that_is_missed() -> None:
    cycles = listed("S0", "S1")
    cycles.see(gpu(0), GpuFacts("", index=1, error=15))
    assert checks_of(cycles.verdict.node_findings) == ["gpu-lost"]


def test_a_sweep_cut_short_misses_nobody() -> None:
    cycles = listed("S0", "S1")
    cycles.see(gpu(0), hung=True)
    assert "gpu-identity" not in checks_of(cycles.verdict.node_findings)
