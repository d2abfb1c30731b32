"""`check` in one screen: what is wrong, since when, on which slot and serial, and what to do."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from nodeagent.cli import advice
from nodeagent.cli.check_command import screen
from nodeagent.gpu.facts import NodeFacts
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.verdict import UnitVerdict, Verdict
from nodeagent.report import check_document, worst_state

ERROR, WARNING, INFO, UNKNOWN = Severity.ERROR, Severity.WARNING, Severity.INFO, Severity.UNKNOWN
NOW, WALL = 5000.0, 1_000_000_000.0
FACTS = NodeFacts("boot", NOW, driver="550.54.15")


class Hands:
    """A clock that stands."""

    def monotonic(self) -> float:
        return NOW

    def wall(self) -> float:
        return WALL


def unit(index: int, state: str = "OK", *reasons: Finding, **values: object) -> UnitVerdict:
    place = (index, index, f"0000:{index:02x}:00.0", "H100", f"S{index}", str(index + 1))
    made = UnitVerdict(f"GPU-{index}", state, NOW - 600.0, reasons, *place)
    return replace(made, **values)  # type: ignore[arg-type]


def finding(severity: Severity, evidence: str, action: RecoveryAction = RecoveryAction.NONE) -> Finding:
    return Finding("some-check", "", severity, evidence, action)


def lines(verdict: Verdict) -> list[str]:
    return list(screen(worst_state(verdict), "n1", verdict, FACTS, Hands()))  # type: ignore[arg-type]


def moment(wall: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall))


def test_the_worst_comes_first_with_all_that_somebody_needs() -> None:
    units = (
        unit(0),
        unit(1, "DEGRADED", finding(WARNING, "warm on GPU 1", RecoveryAction.INSPECT_HARDWARE)),
        unit(2, "UNKNOWN", finding(UNKNOWN, "no answer"), since=NOW),
        unit(3, "FAILED", finding(ERROR, "XID 95 on GPU 3", RecoveryAction.RESET_GPU), finding(INFO, "XID 31")),
        unit(4, "OK", finding(INFO, "XID 13 on GPU 4")),
    )
    node = (finding(ERROR, "no fabric manager", RecoveryAction.REBOOT_NODE), finding(INFO, "mixed"))
    assert lines(Verdict("boot", NOW, units, "FAILED", node)) == [
        f"FAILED: n1, 5 GPUs, driver 550.54.15, {moment(WALL)}",
        "node: no fabric manager [some-check]",
        "node: mixed",
        "  to do: reboot the node when its jobs have ended: gpu-nodeagent drain --reason …",
        f"GPU 3 FAILED, since {moment(WALL - 600)}: H100 in slot 4, serial S3 (GPU-3)",
        "  XID 95 on GPU 3 [some-check]",
        "  XID 31 [some-check]",
        "  to do: reset it when no job is on it: gpu-nodeagent retire 3 --reason …; gpu-nodeagent release-driver; "
        "nvidia-smi --gpu-reset -i 0000:03:00.0",
        "GPU 2 UNKNOWN, found now: H100 in slot 3, serial S2 (GPU-2)",
        "  no answer [some-check]",
        "  to do: nothing yet: nobody could judge it; if that lasts, dmesg and `nvidia-smi` may tell why",
        f"GPU 1 DEGRADED, since {moment(WALL - 600)}: H100 in slot 2, serial S1 (GPU-1)",
        "  warm on GPU 1 [some-check]",
        "  to do: have the board in slot 2, serial S1 looked at: gpu-nodeagent retire 1 --reason …",
        "GPU 4: XID 13 on GPU 4",
        "OK: GPU 0, GPU 4",
    ]


def test_a_node_that_is_all_broken_fits_a_screen() -> None:
    many = [finding(ERROR, f"fault {n}", RecoveryAction.REBOOT_NODE) for n in range(9)]
    found = lines(Verdict("boot", NOW, tuple(unit(n, "FAILED", *many) for n in range(16)), "OK"))
    assert len(found) == 1 + 4 * (1 + 4 + 1 + 1) + 1
    assert found[5:8] == ["  fault 3 [some-check]", "  and 5 more", found[7]]
    assert found[-1] == "12 more, told by --json: " + ", ".join(f"GPU {n}" for n in range(4, 16))


def test_a_healthy_node_is_two_lines_and_one_without_gpus_says_so() -> None:
    assert lines(Verdict("boot", NOW, (unit(0), unit(1)))) == [
        f"OK: n1, 2 GPUs, driver 550.54.15, {moment(WALL)}",
        "OK: GPU 0, GPU 1",
    ]
    none = finding(INFO, "no NVIDIA GPU on this node: nothing to watch")
    assert lines(Verdict("boot", NOW, (), "OK", (none,)))[1:] == ["node: no NVIDIA GPU on this node: nothing to watch"]


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({}, "in slot 1, serial S0"),
        ({"slot": ""}, "at 0000:00:00.0, serial S0"),
        ({"serial": ""}, "in slot 1"),
        ({"slot": "", "bus_id": "", "serial": ""}, "of unknown place"),
    ],
)
def test_where_a_board_is(values: dict[str, object], where: str) -> None:
    assert advice.place(unit(0, **values)) == where  # type: ignore[arg-type]


@pytest.mark.parametrize("action", list(RecoveryAction))
def test_each_action_has_advice_that_names_a_command_or_says_that_there_is_none(action: RecoveryAction) -> None:
    words = advice.for_unit(unit(7, "FAILED", finding(ERROR, "x", action)))
    assert words and ("gpu-nodeagent" in words) == (action >= RecoveryAction.RESET_GPU)
    assert bool(advice.for_node(action)) == (action >= RecoveryAction.RESET_GPU)


def test_the_document_says_where_and_since_when() -> None:
    document = check_document(Verdict("boot", NOW, (unit(3, "FAILED"),)), WALL - NOW)
    (gpu,) = document["gpus"]
    assert (gpu["slot"], gpu["serial"], gpu["since"]) == ("4", "S3", "2001-09-09T01:36:40Z")
    assert (document["schema"], document["verdict"], gpu["findings"]) == ("gpu-nodeagent/check/1", "FAILED", [])
