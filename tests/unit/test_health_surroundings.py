"""The checks of what is around the GPUs: device files, kernel module, services, ports, room, processes, switches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nodeagent.config.model import Health
from nodeagent.config.thresholds import Infiniband, MemoryErrors, Rogue
from nodeagent.gpu.facts import NodeFacts, Process, XidEvent
from nodeagent.gpu.host import DeviceFile, DeviceRule, Holder, Port, Service, Space
from nodeagent.health import sxid as sxids
from nodeagent.health.finding import RecoveryAction, Severity
from nodeagent.health.memory import from_plain, to_plain
from nodeagent.health.verdict import judge
from tests.unit.test_health_facts import Cycles, bus, checks_of, gpu, lost, node, uuid

AT_ONCE = Health(strikes={})
WARNING, ERROR, INFO, UNKNOWN = Severity.WARNING, Severity.ERROR, Severity.INFO, Severity.UNKNOWN
NONE, RESET, REBOOT, INSPECT = (
    RecoveryAction.NONE,
    RecoveryAction.RESET_GPU,
    RecoveryAction.REBOOT_NODE,
    RecoveryAction.INSPECT_HARDWARE,
)
CONTROL = DeviceFile("c", 0o666, 0, 0, 195, 255)
RULE = DeviceRule(True, 0o666, 0, 0)


def of_node(cycles: Cycles) -> list[tuple[str, Severity, RecoveryAction]]:
    """What is said of the node."""
    return [(one.check, one.severity, one.action) for one in cycles.verdict.node_findings]


# ---- device files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "control", "rule", "wrong"),
    [
        (DeviceFile("c", 0o666, 0, 0, 195, 0), CONTROL, RULE, ""),
        (DeviceFile(), CONTROL, RULE, "is missing"),
        (DeviceFile("-", 0o644), CONTROL, RULE, "is no device"),
        (DeviceFile("c", 0o666, 0, 0, 195, 1), CONTROL, RULE, "is device 195:1 and ought to be 195:0"),
        (DeviceFile("c", 0o666, 0, 0, 1, 0), CONTROL, RULE, "is device 1:0 and ought to be 195:0"),
        (
            DeviceFile("c", 0o600, 0, 0, 195, 0),
            CONTROL,
            RULE,
            "has mode 0600 of 0:0 and ought to have 0666 of 0:0",
        ),
        (
            DeviceFile("c", 0o666, 0, 44, 195, 0),
            CONTROL,
            RULE,
            "has mode 0666 of 0:44 and ought to have 0666 of 0:0",
        ),
        (DeviceFile("c", 0o660, 0, 44, 195, 0), CONTROL, replace(RULE, mode=0o660, gid=44), ""),
        (DeviceFile("c", 0o600, 0, 0, 195, 0), CONTROL, replace(RULE, modify=False), ""),
        (DeviceFile("c", 0o600, 0, 0, 195, 0), CONTROL, None, ""),
        (DeviceFile("-", 0o666), DeviceFile("-", 0o666), None, ""),
        (DeviceFile(), DeviceFile(), RULE, ""),
        (DeviceFile(), None, RULE, ""),
        (None, CONTROL, RULE, ""),
    ],
)
def test_a_device_file(
    file: DeviceFile | None, control: DeviceFile | None, rule: DeviceRule | None, wrong: str
) -> None:
    cycles = Cycles()
    well = gpu(1, device=DeviceFile("c", 0o666, 0, 0, 195, 1) if control == CONTROL else control)
    well = well if rule is None or rule.mode == 0o666 else replace(well, device=None)
    cycles.see(gpu(0, device=file), well, control=control, device_rule=rule)
    assert cycles.states() == ["DEGRADED" if wrong else "OK", "OK"]
    found = [(one.check, one.severity, one.action, one.evidence) for one in cycles.unit(0).reasons]
    assert found == ([("device-files", WARNING, NONE, f"/dev/nvidia0 of GPU 0 {bus(0)} {wrong}")] if wrong else [])


def test_the_file_of_a_gpu_that_is_lost_is_not_missed_besides() -> None:
    cycles = Cycles(AT_ONCE)
    cycles.see(replace(lost(0), minor=0, device=DeviceFile()), control=CONTROL)
    assert checks_of(cycles.unit(0).reasons) == ["gpu-lost"]


# ---- kernel module -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pci", "named"),
    [
        ({"0000:1b:00.0": ""}, "1 GPUs are on the PCI bus: 0000:1b:00.0"),
        ({"0000:1b:00.0": "nouveau"}, "1 GPUs are on the PCI bus: 0000:1b:00.0 (driver nouveau)"),
        (
            {f"0000:{n:02x}:00.0": "" for n in range(9)},
            "9 GPUs are on the PCI bus: " + ", ".join(f"0000:{n:02x}:00.0" for n in range(8)) + ", …",
        ),
    ],
)
@pytest.mark.parametrize("code", [9, 12, 999])
def test_a_missing_kernel_module_is_told_once_whatever_nvml_makes_of_it(
    code: int, pci: dict[str, str], named: str
) -> None:
    cycles = Cycles(AT_ONCE)
    cycles.see(gpu(0))
    cycles.see(nvml_error=code, nvml_error_text="Driver Not Loaded", kernel_driver="", pci=pci)
    assert of_node(cycles) == [("kernel-module", ERROR, REBOOT)]
    assert cycles.verdict.node_findings[0].evidence == f"the kernel module nvidia is not loaded, and {named}"
    (reason,) = cycles.unit(0).reasons
    assert (cycles.state(0), reason.check, reason.severity) == ("UNKNOWN", "kernel-module", UNKNOWN)
    assert reason.evidence == f"GPU 0 {bus(0)} not read: no kernel module is loaded"


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"nvml_error": 9, "kernel_driver": "550.1", "pci": {"a": ""}}, ["driver-init"]),
        ({"nvml_error": 9, "kernel_driver": "", "pci": {}}, ["gpu-count"]),
        ({"nvml_error": 12, "kernel_driver": "", "pci": None}, ["driver-init"]),
        ({"kernel_driver": "", "pci": {bus(0): "nvidia"}}, []),
    ],
)
def test_what_is_no_missing_kernel_module(values: dict[str, object], found: list[str]) -> None:
    cycles = Cycles(AT_ONCE)
    cycles.see(*([] if "nvml_error" in values else [gpu(0)]), **values)
    assert checks_of(cycles.verdict.node_findings) == found


def test_a_node_that_is_to_have_no_gpus_misses_no_module() -> None:
    cycles = Cycles(replace(AT_ONCE, expected_gpus=0))
    cycles.see(nvml_error=9, kernel_driver="", pci={"0000:1b:00.0": ""})
    assert cycles.verdict.node_state == "OK"


def test_gpus_that_the_driver_does_not_serve_are_named() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), pci={bus(0): "nvidia", "0000:f0:00.0": "nvidia", "0000:f1:00.0": "nouveau", "0000:f2:00.0": ""})
    (finding,) = cycles.verdict.node_findings
    assert (finding.check, finding.severity) == ("gpu-count", WARNING)
    assert finding.evidence == (
        "the driver does not serve every GPU: NVML lists 1 GPUs, 4 on the PCI bus "
        "(not 0000:f0:00.0, 0000:f1:00.0 (driver nouveau), 0000:f2:00.0)"
    )


# ---- services ------------------------------------------------------------------------------------------------------

FM, PERSISTENCE = "nvidia-fabricmanager", "nvidia-persistenced"


@pytest.mark.parametrize(
    ("service", "fabric", "found"),
    [
        (Service(FM, "loaded", "active", "success", "enabled"), 3, None),
        (Service(FM, "loaded", "activating", "success", "enabled"), 3, None),
        (Service(FM, "loaded", "reloading", "success", "enabled"), 3, None),
        (Service(FM, "loaded", "inactive", "success", "disabled"), 3, None),
        (Service(FM, "loaded", "inactive", "success", "static"), 3, None),
        (Service(FM, "not-found", "inactive", "success", ""), 3, None),
        (Service(FM, "masked", "inactive", "success", "masked"), 3, None),
        (Service(FM, "loaded", "failed", "exit-code", "disabled"), 3, (ERROR, REBOOT, "failed (exit-code)")),
        (Service(FM, "loaded", "failed", "exit-code", "enabled"), 1, (ERROR, REBOOT, "failed (exit-code)")),
        (Service(FM, "loaded", "inactive", "success", "enabled"), 3, (ERROR, REBOOT, "inactive")),
        (Service(FM, "loaded", "inactive", "", "enabled-runtime"), 3, (ERROR, REBOOT, "inactive")),
        (Service(FM, "loaded", "deactivating", "success", "enabled"), 3, (ERROR, REBOOT, "deactivating")),
        (Service(FM, "loaded", "failed", "exit-code", "enabled"), 0, (INFO, NONE, "failed (exit-code)")),
        (Service(FM, "loaded", "failed", "exit-code", "enabled"), None, (INFO, NONE, "failed (exit-code)")),
        (Service(PERSISTENCE, "loaded", "failed", "signal", "enabled"), 3, (WARNING, NONE, "failed (signal)")),
        (Service(PERSISTENCE, "loaded", "active", "signal", "enabled"), 3, None),
    ],
)
def test_a_service(service: Service, fabric: int | None, found: tuple[Severity, RecoveryAction, str] | None) -> None:
    settings = AT_ONCE
    for at in (5.0, 35.0):
        verdict, _ = judge_once(node(gpu(0, fabric_state=fabric), services=(replace(service, at=at),)), settings)
        of_services = [one for one in verdict.node_findings if one.check == "services"]
        if found is None:
            assert of_services == []
            continue
        severity, action, how = found
        (one,) = of_services
        assert (one.severity, one.action) == (severity, action)
        assert one.evidence == f"service {service.name} is {how}; see `systemctl status {service.name}`"


def judge_once(facts: NodeFacts, settings: Health):  # type: ignore[no-untyped-def]
    return judge(from_plain(to_plain(Cycles().memory)), replace(facts, monotonic=1000.0), settings)


def test_one_answer_told_in_many_cycles_is_one_strike() -> None:
    cycles = Cycles()
    down = Service(PERSISTENCE, "loaded", "failed", "signal", "enabled", at=5.0)
    for _ in range(3):
        cycles.see(gpu(0), services=(down,))
    assert cycles.verdict.node_state == "OK"
    cycles.see(gpu(0), services=(replace(down, at=35.0),))
    assert cycles.verdict.node_state == "DEGRADED"


def test_a_node_without_gpus_needs_no_service() -> None:
    cycles = Cycles(AT_ONCE)
    cycles.see(pci={}, services=(Service(FM, "loaded", "failed", "exit-code", "enabled"),))
    assert cycles.verdict.node_state == "OK" and checks_of(cycles.verdict.node_findings) == ["gpu-count"]


# ---- InfiniBand ----------------------------------------------------------------------------------------------------

UP, DOWN = Port("mlx5_0", 1, 4, 5, 200.0, 0), Port("mlx5_0", 1, 1, 3, 10.0, 1)


def watch(cycles: Cycles, times: int, *ports: Port, **values: object) -> None:
    for _ in range(times):
        cycles.see(gpu(0), ports=ports, **values)


def test_a_port_that_was_up_and_is_down_for_four_minutes() -> None:
    cycles = Cycles()
    watch(cycles, 2, UP)
    watch(cycles, 24, DOWN)
    assert (cycles.verdict.node_state, cycles.verdict.node_findings) == ("OK", ())
    watch(cycles, 1, DOWN)
    assert of_node(cycles) == [("infiniband", WARNING, INSPECT)]
    assert cycles.verdict.node_findings[0].evidence == (
        "InfiniBand port mlx5_0/1 has been down for 4 minutes; it was active"
    )
    watch(cycles, 3, UP)
    assert cycles.verdict.node_state == "OK"


@pytest.mark.parametrize("state", [1, 2, 3, None])
def test_a_port_that_was_never_up_is_none_of_this_nodes(state: int | None) -> None:
    cycles = Cycles()
    watch(cycles, 70, replace(DOWN, state=state), replace(UP, number=2))
    assert cycles.verdict.node_findings == ()


@pytest.mark.parametrize("state", [4, 5])
def test_a_port_is_up_when_active_also_while_it_is_about_to_change(state: int) -> None:
    cycles = Cycles(Health(infiniband=Infiniband(ports=1)))
    watch(cycles, 70, replace(UP, state=state))
    assert cycles.verdict.node_findings == ()


def test_an_adapter_that_is_gone_is_a_port_that_is_down() -> None:
    cycles = Cycles()
    watch(cycles, 2, UP, replace(UP, device="mlx5_1"))
    watch(cycles, 26, UP)
    assert [one.evidence for one in cycles.verdict.node_findings] == [
        "InfiniBand port mlx5_1/1 has been down for 4 minutes; it was active"
    ]


def test_a_short_break_is_no_fault() -> None:
    cycles = Cycles()
    watch(cycles, 2, UP)
    watch(cycles, 12, DOWN)
    watch(cycles, 12, UP)
    watch(cycles, 6, DOWN)
    assert cycles.verdict.node_findings == ()


@pytest.mark.parametrize(("lost_links", "found"), [(2, False), (3, True)])
def test_a_link_that_is_lost_again_and_again(lost_links: int, found: bool) -> None:
    cycles = Cycles()
    for downed in range(lost_links + 1):
        watch(cycles, 2, replace(UP, downed=7 + downed))
    assert of_node(cycles) == ([("infiniband", WARNING, INSPECT)] if found else [])
    if found:
        assert (
            cycles.verdict.node_findings[0].evidence == "InfiniBand port mlx5_0/1 lost its link 3 times within an hour"
        )
    watch(cycles, 1, replace(UP, downed=0))  # the counter was cleared
    watch(cycles, 3, replace(UP, downed=0))
    assert cycles.verdict.node_findings == ()


def test_lost_links_of_before_the_agent_are_nobodys() -> None:
    cycles = Cycles()
    watch(cycles, 5, replace(UP, downed=99))
    assert cycles.verdict.node_findings == ()


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Infiniband(ports=2), "1 of 2 InfiniBand ports are active"),
        (Infiniband(ports=1, rate=400.0), "0 of 1 InfiniBand ports of at least 400 Gbit/s are active"),
    ],
)
def test_fewer_ports_than_the_site_wants(wish: Infiniband, words: str) -> None:
    cycles = Cycles(Health(infiniband=wish))
    watch(cycles, 24, UP, replace(DOWN, number=2))
    assert cycles.verdict.node_findings == ()
    watch(cycles, 1, UP, replace(DOWN, number=2))
    assert of_node(cycles) == [("infiniband", ERROR, REBOOT)]
    assert cycles.verdict.node_findings[0].evidence == words
    watch(cycles, 3, replace(UP, rate=400.0), replace(UP, number=2))
    assert cycles.verdict.node_state == "OK"


@pytest.mark.parametrize("rate", [200.0, 100.0])
def test_as_many_ports_as_the_site_wants(rate: float) -> None:
    cycles = Cycles(Health(infiniband=Infiniband(ports=1, rate=rate)))
    watch(cycles, 40, UP)
    assert cycles.verdict.node_findings == ()


def test_a_port_that_does_not_say_its_rate_is_not_as_fast_as_the_site_wants() -> None:
    cycles = Cycles(Health(infiniband=Infiniband(ports=1, rate=0.5)))
    watch(cycles, 40, replace(UP, rate=None))
    assert of_node(cycles) == [("infiniband", ERROR, REBOOT)]


def test_ports_that_do_not_answer_are_unknown_and_nothing_is_made_of_them() -> None:
    cycles = Cycles(Health(infiniband=Infiniband(ports=1)))
    watch(cycles, 2, UP)
    watch(cycles, 40, ports_silent=True)
    assert of_node(cycles) == [("infiniband", UNKNOWN, NONE)]
    assert cycles.verdict.node_state == "UNKNOWN" and cycles.states() == ["OK"]
    watch(cycles, 3, UP)
    assert cycles.verdict.node_state == "OK"


def test_windows_of_ports_outlive_the_agent() -> None:
    cycles = Cycles()
    watch(cycles, 2, UP)
    watch(cycles, 20, DOWN)
    cycles.memory = from_plain(to_plain(cycles.memory))
    watch(cycles, 5, DOWN)
    assert of_node(cycles) == [("infiniband", WARNING, INSPECT)]


# ---- room in the state directory -----------------------------------------------------------------------------------

MIB = 1 << 20


@pytest.mark.parametrize(
    ("space", "severity", "words"),
    [
        (Space(16 * MIB, 256), None, ""),
        (Space(16 * MIB, None), None, ""),
        (Space(16 * MIB - 1, 256), WARNING, "the state directory is nearly full: 16383 KiB, 256 files left"),
        (Space(1 << 40, 255), WARNING, "the state directory is nearly full: 1073741824 KiB, 255 files left"),
        (Space(64 << 10, 2), WARNING, "the state directory is nearly full: 64 KiB, 2 files left"),
        (Space((64 << 10) - 1, None), ERROR, "the state directory is full: 63 KiB left"),
        (Space(16 * MIB, 1), ERROR, "the state directory is full: 16384 KiB, 1 files left"),
        (Space(16 * MIB, 256, writable=False), ERROR, "the state directory is read-only: no lock can be taken"),
        (None, None, ""),
    ],
)
def test_room_in_the_state_directory(space: Space | None, severity: Severity | None, words: str) -> None:
    cycles = Cycles()
    cycles.see(gpu(0), space=space)
    assert of_node(cycles) == ([] if severity is None else [("state-space", severity, NONE)])
    assert [one.evidence for one in cycles.verdict.node_findings] == ([words] if words else [])
    for _ in range(3):
        cycles.see(gpu(0), space=Space(32 * MIB))
    assert cycles.verdict.node_state == "OK"


# ---- processes without a grant -------------------------------------------------------------------------------------

JOB = Holder("slurm", "17", user="alice", uid=1001)
ARRAY = Holder("sge", "8", "3", "bob", 1002)
OWN = Process(50, 1, 1001, "alice", "train", "slurm 17")


@pytest.mark.parametrize(
    ("process", "holders", "words"),
    [
        (OWN, (JOB,), ""),
        (replace(OWN, job=""), (JOB,), ""),
        (Process(60, 1, 1002, "bob", "x", "sge 8.3"), (ARRAY,), ""),
        (Process(60, 1, 1002, "bob", "x", "sge 8.3"), (JOB, ARRAY), ""),
        (Process(60, 1, 1002, "bob", "x", "sge 8.4"), (ARRAY,), "process 60 (x) of bob of job sge 8.4"),
        (OWN, (replace(JOB, scheduler="cleaning"),), ""),
        (replace(OWN, job="slurm 18"), (JOB,), "process 50 (train) of alice of job slurm 18"),
        (OWN, (), "process 50 (train) of alice of job slurm 17"),
        (OWN, (ARRAY,), "process 50 (train) of alice of job slurm 17"),
        (Process(61, 1, 1003, "carol", "python", ""), (JOB,), "process 61 (python) of carol of no job"),
        (Process(61, 1, 1003), (JOB,), "process 61 (?) of 1003 of no job"),
        (Process(62, 1, 0, "root", "Xorg"), (), ""),
        (Process(62, 1, 999, "nvidia-persist", "x"), (), ""),
        (Process(62, 1, 1000, "first", "x"), (), "process 62 (x) of first of no job"),
        (Process(63, 1), (), ""),
        (Process(61, 1, 1003, "carol"), (Holder("hold", user="root", uid=0),), ""),
        (Process(61, 1, 1003, "carol"), (Holder("maintenance"),), ""),
        (Process(61, 1, 1003, "carol"), (Holder("unreadable"),), ""),
        (Process(61, 1, 1004, "monitor", "exporter"), (JOB,), ""),
        # a job of Slurm's that no hook has locked anything for: hooks are not in use for it
        (Process(61, 1, 1003, "carol", "x", "slurm 99"), (JOB,), ""),
    ],
)
def test_a_process_without_a_grant(process: Process, holders: tuple[Holder, ...], words: str) -> None:
    others = (Holder("slurm", "18", user="alice", uid=1001), replace(ARRAY, task="4"))
    elsewhere = gpu(1, holders=(JOB, *others), processes=(OWN,))
    settings = replace(AT_ONCE, rogue=Rogue(users=("monitor",)))
    cycles = Cycles(settings)
    cycles.see(gpu(0, processes=(process,), holders=holders), elsewhere, locked=True)
    assert cycles.states() == ["DEGRADED" if words else "OK", "OK"]
    found = [(one.check, one.severity, one.action, one.evidence) for one in cycles.unit(0).reasons]
    evidence = f"on GPU 0 {bus(0)} without a grant: {words}"
    assert found == ([("rogue-process", WARNING, NONE, evidence)] if words else [])


def test_two_sweeps_make_a_rogue_and_it_is_one_no_more_when_it_is_gone() -> None:
    cycles = Cycles()
    sick = gpu(0, processes=(Process(61, 1, 1003, "carol"),))
    cycles.see(sick, locked=True)
    assert cycles.states() == ["OK"]
    cycles.see(sick, locked=True)
    assert cycles.states() == ["DEGRADED"]
    for _ in range(3):
        cycles.see(gpu(0), locked=True)
    assert cycles.states() == ["OK"]


def test_where_nobody_locks_nobody_is_a_rogue() -> None:
    cycles = Cycles(AT_ONCE)
    cycles.see(gpu(0, processes=(Process(61, 1, 1003, "carol"),)))
    assert cycles.states() == ["OK"]


def test_of_many_rogues_eight_are_named() -> None:
    cycles = Cycles(AT_ONCE)
    cycles.see(gpu(0, processes=tuple(Process(n, 1, 1003, "carol", "x") for n in range(60, 69))), locked=True)
    (reason,) = cycles.unit(0).reasons
    assert reason.evidence.count("process") == 8 and reason.evidence.endswith(", …") and "(x)" in reason.evidence


# ---- NVSwitches ----------------------------------------------------------------------------------------------------

SWITCH = "0000:85:00.0"


def fault(number: int, text: str = "", **values: object) -> XidEvent:
    event = XidEvent("", number, 0.0, "kernel", kind="sxid", bus_id=SWITCH, text=text)
    return replace(event, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "text", "severity", "words"),
    [
        (11012, "", INFO, "SXid 11012 (single bit ECC error, corrected)"),
        (20001, "SXid (PCI:0000:85:00.0): 20001, Non-fatal, Link 3", INFO, "SXid 20001 (link: packet sent again)"),
        (20034, "SXid (PCI:0000:85:00.0): 20034, Fatal, Link 30 LTSSM", WARNING, "SXid 20034 (link went down)"),
        (12022, "", WARNING, "SXid 12022 (egress: double bit error at the input)"),
        (79, "", INFO, "SXid 79 (meaning unknown)"),
        (31001, "SXid (PCI:0000:85:00.0): 31001, Non-fatal, Link 3", INFO, "SXid 31001 (meaning unknown)"),
        (31001, "SXid (PCI:0000:85:00.0): 31001, Fatal, Link 3", WARNING, "SXid 31001 (meaning unknown)"),
    ],
)
def test_a_switchs_fault_that_takes_nothing_out(number: int, text: str, severity: Severity, words: str) -> None:
    cycles = Cycles()
    cycles.see(gpu(0))
    cycles.see(gpu(0), xids=(fault(number, text), fault(number, text)))
    assert of_node(cycles) == [("sxid", severity, NONE)]
    assert cycles.verdict.node_findings[0].evidence == f"{words} on NVSwitch {SWITCH}, 2 times"
    assert cycles.states() == ["OK"]
    for _ in range(3):
        cycles.see(gpu(0))
    assert cycles.verdict.node_findings == ()


@pytest.mark.parametrize("number", [n for n, known in sxids.TABLE.items() if known.reach is sxids.Reach.FABRIC])
def test_a_fault_of_the_whole_fabric_fails_the_node_at_once(number: int) -> None:
    cycles = Cycles()
    cycles.see(gpu(0), xids=(fault(number),))  # also just after a boot
    assert of_node(cycles) == [("sxid", ERROR, REBOOT)]
    assert cycles.verdict.node_state == "FAILED" and cycles.states() == ["OK"]
    name = sxids.TABLE[number].name
    assert cycles.verdict.node_findings[0].evidence == f"SXid {number} ({name}) on NVSwitch {SWITCH}"


def test_a_fault_of_the_fabric_stands_until_each_gpu_has_been_initialised_anew() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), gpu(1))
    cycles.see(gpu(0), gpu(1), xids=(fault(22003),))
    cycles.see(gpu(0), gpu(1), xids=(fault(22003), fault(22003, bus_id="0000:86:00.0")))
    evidence = [one.evidence for one in cycles.verdict.node_findings]
    assert evidence == [
        f"SXid 22003 (link controller has halted) on NVSwitch {SWITCH}, 2 times",
        "SXid 22003 (link controller has halted) on NVSwitch 0000:86:00.0",
    ]
    cycles.memory = from_plain(to_plain(cycles.memory))
    for _ in range(10):
        cycles.see(gpu(0), gpu(1))
    assert cycles.verdict.node_state == "FAILED"
    for _ in range(10):
        cycles.see(gpu(0, energy=1.0), gpu(1))
    assert cycles.verdict.node_state == "FAILED", "one GPU is not enough"
    for _ in range(3):
        cycles.see(gpu(0, energy=1.0), gpu(1, energy=2.0))
    assert (cycles.verdict.node_state, cycles.verdict.node_findings) == ("OK", ())


def test_a_fault_of_the_fabric_before_any_gpu_was_read_stands_until_the_next_boot() -> None:
    cycles = Cycles()
    cycles.see(nvml_error=9, xids=(fault(23001),), pci={bus(0): "nvidia"})
    for energy in (10.0, 1.0, 10.0, 1.0):
        cycles.see(gpu(0, energy=energy))
    assert cycles.verdict.node_state == "FAILED"
    cycles.see(gpu(0), boot_id="boot-b")
    assert cycles.verdict.node_state == "OK"


def test_a_site_says_how_far_a_switchs_fault_reaches() -> None:
    cycles = Cycles(Health(sxid_reach={22003: "none", 11012: "fabric", 31001: "link"}))
    cycles.see(gpu(0), xids=(fault(22003), fault(11012), fault(31001)))
    assert [(one.severity, one.evidence.split(" on ")[0]) for one in cycles.verdict.node_findings] == [
        (ERROR, "SXid 11012 (single bit ECC error, corrected)"),
        (WARNING, "SXid 31001 (meaning unknown)"),
        (INFO, "SXid 22003 (link controller has halted)"),
    ]
    cycles.settings = Health(sxid_reach={11012: "none"})
    for _ in range(3):
        cycles.see(gpu(0))
    assert cycles.verdict.node_state == "OK", "what was latched is taken back, too"


def test_a_switch_that_the_kernel_does_not_name_is_somewhere() -> None:
    cycles = Cycles()
    cycles.see(gpu(0), xids=(fault(12022, bus_id=""),))
    (finding,) = cycles.verdict.node_findings
    assert finding.evidence == "SXid 12022 (egress: double bit error at the input) on NVSwitch of unknown place"


def test_the_lists_of_switch_faults_do_not_overlap() -> None:
    reach = [known.reach for known in sxids.TABLE.values()]
    assert (reach.count(sxids.Reach.NONE), reach.count(sxids.Reach.LINK), reach.count(sxids.Reach.FABRIC)) == (
        *(28, 42, 21),
    )
    assert all(known.number == number and known.name for number, known in sxids.TABLE.items())


# ---- what older drivers say, and a board's life --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"reset_status": 1}, ["the driver asks for a reset (status 1)"]),
        ({"drain_and_reset_status": 1}, ["the driver asks for a drain and a reset (status 1)"]),
        ({"reset_status": 0, "drain_and_reset_status": 0}, []),
        ({"reset_status": 1, "recovery_action": 1}, ["the driver asks for GPU reset (recovery action 1)"]),
        ({"reset_status": 1, "recovery_action": None}, ["the driver asks for a reset (status 1)"]),
    ],
)
def test_reset_status(values: dict[str, object], words: list[str]) -> None:
    cycles = Cycles()
    cycles.see(gpu(0, **values), gpu(1))
    assert cycles.states() == ["FAILED" if words else "OK", "OK"]
    found = [(one.check, one.severity, one.action, one.evidence) for one in cycles.unit(0).reasons]
    assert found == [("reset-required", ERROR, RESET, f"GPU 0 {bus(0)}: {text}") for text in words]


@pytest.mark.parametrize(("most", "total", "found"), [(0, 10**6, False), (5, 5, False), (5, 6, True), (5, None, False)])
def test_uncorrected_errors_in_a_boards_life(most: int, total: int | None, found: bool) -> None:
    cycles = Cycles(Health(memory_errors=MemoryErrors(uncorrected_total=most)))
    cycles.see(gpu(0, ecc_uncorrected_total=total))
    reasons = [(one.check, one.severity, one.action, one.evidence) for one in cycles.unit(0).reasons]
    evidence = f"6 uncorrected ECC errors in the life of GPU 0 {bus(0)}"
    assert reasons == ([("ecc-uncorrected", WARNING, INSPECT, evidence)] if found else [])
    assert uuid(0) == cycles.unit(0).uuid
