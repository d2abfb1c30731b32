"""What is said where NVML does not start, hangs or dies, and of GPUs that never told who they are: word by word."""

from __future__ import annotations

import pytest

from nodeagent.config.model import Health
from nodeagent.gpu.facts import GpuFacts, NodeFacts
from nodeagent.health.checks import CHECKS
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.memory import Memory
from nodeagent.health.scene import observe
from nodeagent.health.verdict import judge
from tests.unit.test_health_facts import bus, gpu, lost, node, on_bus, uuid

REBOOT, RESET = RecoveryAction.REBOOT_NODE, RecoveryAction.RESET_GPU
PLACES = tuple(f"GPU {number} {bus(number)}" for number in range(3))


def found(check: str, facts: NodeFacts, known: int = 0, settings: Health | None = None) -> list[Finding]:
    """Return what a check says of a sweep on a node of which so many GPUs were known before."""
    settings = settings or Health()
    memory = judge(Memory(), node(*map(gpu, range(known))), settings)[1] if known else Memory()
    return list(CHECKS[check](observe(memory, facts, settings), settings))


def failing(code: int | None, text: str = "", module: str = "") -> NodeFacts:
    return node(nvml_error=code, nvml_error_text=text, kernel_driver=module, pci=on_bus(1) if module else None)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (failing(9), "the driver is not loaded (no kernel module seen) (9)"),
        (
            failing(12, module="550.1"),
            "libnvidia-ml.so.1 is missing or broken; install the driver's libraries (kernel module 550.1) (12)",
        ),
        (failing(17), "the operating system blocks it, a cgroup perhaps (no kernel module seen) (17)"),
        (
            failing(18, module="550.1"),
            "versions of driver library and kernel module differ (kernel module 550.1) (18)",
        ),
        (failing(999, "Unknown\n Error", "550.1"), "Unknown Error (kernel module 550.1) (999)"),
        (failing(3), "no text (no kernel module seen) (3)"),
    ],
)
def test_why_nvml_does_not_start(facts: NodeFacts, why: str) -> None:
    evidence = f"NVML does not start: {why}"
    assert found("driver-init", facts, known=1) == [
        Finding("driver-init", "", Severity.ERROR, evidence, REBOOT),
        Finding("driver-init", uuid(0), Severity.UNKNOWN, f"not read: {evidence}"),
    ]


@pytest.mark.parametrize(("code", "text"), [(1, "Uninitialized"), (4, "No Permission"), (10, "Timeout"), (20, "")])
def test_codes_that_speak_of_the_prober(code: int, text: str) -> None:
    evidence = f"NVML does not start: {text or 'no text'} (no kernel module seen) ({code})"
    assert found("driver-init", failing(code, text)) == [Finding("driver-init", "", Severity.UNKNOWN, evidence)]


def test_where_a_hang_is() -> None:
    check = "driver-unresponsive"
    at_gpu = "NVML calls hang at {}: no answer in time"
    assert found(check, node(gpu(0), hung=True, hung_uuid=uuid(1)), known=3) == [
        Finding(check, uuid(1), Severity.ERROR, at_gpu.format(PLACES[1]), RESET),
        Finding(check, uuid(2), Severity.UNKNOWN, f"{PLACES[2]} not read: NVML hangs at {PLACES[1]}"),
    ]
    nameless = "GPU 1, which never told its UUID"
    assert found(check, node(hung=True, hung_index=1), known=1) == [
        Finding(check, "", Severity.ERROR, at_gpu.format(nameless), RESET),
        Finding(check, uuid(0), Severity.UNKNOWN, f"{PLACES[0]} not read: NVML hangs at {nameless}"),
    ]
    assert found(check, node(hung=True), known=1) == [
        Finding(check, "", Severity.UNKNOWN, "NVML as a whole gives no answer in time"),
        Finding(check, uuid(0), Severity.UNKNOWN, f"{PLACES[0]} not read: NVML hangs before any GPU was reached"),
    ]
    assert found(check, node(gpu(0)), known=1) == []


def test_where_and_how_the_probe_died() -> None:
    check = "probe-crashed"
    killed = f"the NVML probe was killed by signal 11 at {PLACES[1]}"
    assert found(check, node(gpu(0), crashed=11, hung_uuid=uuid(1)), known=3) == [
        Finding(check, uuid(1), Severity.UNKNOWN, f"{PLACES[1]} not read: {killed}"),
        Finding(check, uuid(2), Severity.UNKNOWN, f"{PLACES[2]} not read: {killed}"),
    ]
    ended = "the NVML probe ended by itself at GPU 1, which never told its UUID"
    assert found(check, node(crashed=0, hung_index=1), known=1) == [
        Finding(check, "", Severity.UNKNOWN, ended),
        Finding(check, uuid(0), Severity.UNKNOWN, f"{PLACES[0]} not read: {ended}"),
    ]
    first = "the NVML probe ended by itself before any GPU was reached"
    assert found(check, node(crashed=0)) == [Finding(check, "", Severity.UNKNOWN, first)]
    assert found(check, node(gpu(0)), known=1) == []


@pytest.mark.parametrize(
    ("nameless", "severity", "action", "evidence"),
    [
        (
            GpuFacts("", index=2, bus_id=bus(2), error=15),
            *(Severity.ERROR, REBOOT),
            f"{PLACES[2]} (UUID never read) is lost: NVML answers 15, it has fallen off the bus",
        ),
        (
            GpuFacts("", index=2, error=16),
            *(Severity.ERROR, RESET, "GPU 2 (UUID never read) requires a reset: NVML answers 16"),
        ),
        (
            GpuFacts("", error=4, error_text="No\nPermission"),
            *(Severity.UNKNOWN, RecoveryAction.NONE),
            "GPU ? (UUID never read) cannot be read: NVML answers 4 (No Permission)",
        ),
        (
            GpuFacts("", index=0, bus_id=bus(0), error=999),
            *(Severity.UNKNOWN, RecoveryAction.NONE),
            f"{PLACES[0]} (UUID never read) cannot be read: NVML answers 999 (no text)",
        ),
    ],
)
def test_a_gpu_that_never_told_who_it_is(
    nameless: GpuFacts, severity: Severity, action: RecoveryAction, evidence: str
) -> None:
    assert found("gpu-lost", node(nameless)) == [Finding("gpu-lost", "", severity, evidence, action)]


def test_gpus_that_are_lost_or_gone() -> None:
    gone = f"{PLACES[0]} is gone: NVML listed it earlier in this boot and lists it no more"
    assert found("gpu-lost", node(lost(1), lost(2, 16)), known=3) == [
        Finding(
            *("gpu-lost", uuid(1), Severity.ERROR),
            f"{PLACES[1]} is lost: NVML answers 15, it has fallen off the bus",
            REBOOT,
        ),
        Finding("gpu-lost", uuid(0), Severity.ERROR, gone, REBOOT),
    ]
    required = f"{PLACES[2]} requires a reset: NVML answers 16"
    assert found("reset-required", node(lost(2, 16))) == [
        Finding("reset-required", uuid(2), Severity.ERROR, required, RESET)
    ]


def test_nameless_gpus_beyond_those_that_are_gone_are_the_nodes() -> None:
    two = (GpuFacts("", index=1, bus_id=bus(8), error=15), GpuFacts("", index=2, bus_id=bus(9), error=15))
    findings = found("gpu-lost", node(gpu(0), *two), known=2)
    assert [(one.unit, one.evidence.split(" (")[0]) for one in findings] == [
        (uuid(1), f"{PLACES[1]} is gone: NVML listed it earlier in this boot and lists it no more"),
        ("", f"GPU 2 {bus(9)}"),
    ]


EXPECTED = "{} GPUs expected: NVML lists {} GPUs, {} on the PCI bus"


@pytest.mark.parametrize(
    ("expected", "facts", "finding"),
    [
        (3, node(gpu(0), gpu(1), pci=on_bus(3)), (Severity.ERROR, EXPECTED.format(3, 2, 3), REBOOT)),
        (
            *(3, node(gpu(0), gpu(1), pci=None)),
            (Severity.ERROR, "3 GPUs expected: NVML lists 2 GPUs", REBOOT),
        ),
        (1, node(gpu(0), gpu(1)), (Severity.WARNING, EXPECTED.format(1, 2, 2), RecoveryAction.NONE)),
        (0, node(gpu(0)), (Severity.WARNING, EXPECTED.format(0, 1, 1), RecoveryAction.NONE)),
        (
            *(-1, node(gpu(0), pci=on_bus(3))),
            (
                Severity.WARNING,
                f"the driver does not serve every GPU: NVML lists 1 GPUs, 3 on the PCI bus (not {bus(2)})",
                RecoveryAction.NONE,
            ),
        ),
        (-1, node(gpu(0), pci=on_bus(2)), None),
        (2, node(gpu(0)), None),
        (3, node(gpu(0), hung=True), None),
        (1, node(gpu(0), pci=on_bus(2)), None),
    ],
)
def test_the_number_of_gpus_beside_one_that_was_known(
    expected: int, facts: NodeFacts, finding: tuple[Severity, str, RecoveryAction] | None
) -> None:
    settings = Health(expected_gpus=expected)
    findings = found("gpu-count", facts, known=2 if len(facts.gpus) == 1 and expected else 0, settings=settings)
    assert findings == ([] if finding is None else [Finding("gpu-count", "", *finding)])


def test_a_node_without_any_gpu_says_so() -> None:
    said = Finding("gpu-count", "", Severity.INFO, "no NVIDIA GPU on this node: nothing to watch")
    assert found("gpu-count", node()) == [said]
