"""The reason of a drain: what it names, how long it gets, and that it is known again."""

from __future__ import annotations

import pytest

from nodeagent.config.model import Policy
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.verdict import UnitVerdict, Verdict
from nodeagent.policy.decide import adopted, wanted_drain
from nodeagent.scheduler.reason import LONGEST, PREFIX, Reason, compose, is_ours, parse

UUID = "GPU-1a2b3c4d-0000-1111-2222-333344445555"
SINCE = "2026-11-28T04:25:00Z"


def unit(words: str = "XID 79 (GPU has fallen off the bus) on GPU 3 0000:3b:00.0") -> UnitVerdict:
    finding = Finding("xid", UUID, Severity.ERROR, words, RecoveryAction.REBOOT_NODE)
    return UnitVerdict(UUID, "FAILED", 7.0, (finding,), 3, 3, "0000:3b:00.0", slot="5")


def test_the_words_name_the_gpu_in_every_way_once_and_the_check_and_what_was_seen() -> None:
    drain = wanted_drain(Verdict("boot", 9.0, (unit(),)), Policy(), spares_units=False, retired={})
    assert drain is not None and drain.since == 7.0
    assert drain.reason == (
        f"{PREFIX}GPU 3 0000:3b:00.0 slot 5 GPU-1a2b3c4d xid: XID 79 (GPU has fallen off the bus); needs reboot_node"
    )


@pytest.mark.parametrize(
    "reason",
    [
        Reason("GPU 3 lost", "reboot_node", "node-17.site", SINCE),
        Reason("GPU 3 lost", "reboot_node", "n1"),
        Reason("GPU 3 lost; GPU 4 lost; since noon; needs love", "reset_gpu", "n1", SINCE),
        Reason("xid: it is on fire", "inspect_hardware"),
        Reason("", "none", "n1", SINCE),
    ],
)
def test_what_is_composed_is_read_again(reason: Reason) -> None:
    assert parse(compose(reason)) == reason
    assert compose(reason).startswith("gpu-nodeagent/1: ") and is_ours(compose(reason))


def test_a_reason_is_one_line_and_keeps_both_ends_however_much_there_is_to_say() -> None:
    line = compose(Reason("GPU 0 lost\nand so on; " * 100, "reboot_node", "n" * 64, SINCE))
    assert len(line) <= LONGEST and "\n" not in line
    assert line.startswith(f"{PREFIX}on {'n' * 64}: GPU 0 lost and so on") and line.endswith("needs reboot_node")
    read = parse(line)
    assert read is not None and (read.host, read.since, read.action) == ("n" * 64, SINCE, "reboot_node")


@pytest.mark.parametrize(
    ("text", "ours", "read"),
    [
        ("gpu-nodeagent/1: GPU 1 lost; needs reboot_node", True, True),  # as the first release wrote it
        ("gpu-nodeagent/1: by hand", True, False),
        ("gpu-nodeagent/1: GPU 1 lost; needs reboot_node; vendor called", True, False),
        ("gpu-nodeagent/2: {'gpu': 1}; needs reboot_node", True, False),
        ("gpu-nodeagent/17: GPU 1 lost; needs reboot_node", True, False),
        ("gpu-nodeagent/x: GPU 1 lost; needs reboot_node", False, False),
        ("gpu-nodeagent: GPU 1 lost; needs reboot_node", False, False),
        ("see gpu-nodeagent/1: GPU 1 lost; needs reboot_node", False, False),
        ("", False, False),
    ],
)
def test_whose_it_is_and_whether_this_release_reads_it(text: str, ours: bool, read: bool) -> None:
    assert is_ours(text) is ours
    assert (parse(text) is not None) is read
    assert (adopted(text) is not None) is read


def test_an_action_that_this_release_does_not_know_is_not_acted_upon() -> None:
    assert adopted("gpu-nodeagent/1: GPU 1 lost; needs exorcism") is None
