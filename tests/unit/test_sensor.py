"""Grid Engine's load sensor: what is reported when."""

import pytest

from nodeagent.cli.sge_sensor_command import one_word_line, report
from nodeagent.lock.record import Owner
from nodeagent.state.verdict_file import UnitLine

JOB, HOLD = Owner("sge", job="7", grant="g"), Owner("hold", grant="h")


def units(*states: str) -> tuple[UnitLine, ...]:
    return tuple(UnitLine(f"GPU-{i}", i, i, "", "", 0, (), state, f"why {i}") for i, state in enumerate(states))


def values(*states: str, trouble: str = "", **how: dict[str, object]) -> dict[str, str]:
    retired = how.get("retired", {})
    owners = how.get("owners", {})
    lines = report(units(*states), retired, owners, "gpu", trouble)  # type: ignore[arg-type]
    found = dict(line.split(":", 1) for line in lines)
    free = int(found.pop("gpu_free", "-1"))
    assert int(found.pop("gpu_linked", "-1")) <= free
    return found


def test_a_healthy_host_offers_all_it_has_whatever_is_in_use() -> None:
    assert values("OK", "OK", "DEGRADED") == {"gpu": "3", "gpu_faulty": "0", "gpu_reason": "none"}
    assert values("OK", "OK", owners={"GPU-0": JOB})["gpu"] == "2"


@pytest.mark.parametrize("state", ["FAILED", "UNKNOWN"])
def test_with_a_fault_it_offers_what_is_free_and_healthy(state: str) -> None:
    found = values("OK", state, "OK", "OK", owners={"GPU-0": JOB, "GPU-1": JOB})
    assert found == {"gpu": "2", "gpu_faulty": "1", "gpu_reason": "why 1"}


def test_retired_units_and_units_held_by_hand_are_not_offered() -> None:
    assert values("OK", "OK", retired={"GPU-0": {"reason": "Xid: 79, gone"}}) == {
        "gpu": "1",
        "gpu_faulty": "1",
        "gpu_reason": "Xid 79 gone",
    }
    assert values("OK", "OK", "OK", owners={"GPU-0": HOLD, "GPU-1": JOB}) == {
        "gpu": "1",
        "gpu_faulty": "0",
        "gpu_reason": "none",
    }


def test_without_any_word_of_the_agents_nothing_is_offered_or_withheld_and_it_is_told() -> None:
    assert values(trouble="no verdict") == {"gpu_faulty": "0", "gpu_reason": "no verdict"}
    assert values("OK", trouble="the last word is 90 s old")["gpu"] == "1"


def test_a_node_that_is_unfit_as_a_whole_offers_nothing() -> None:
    for lines in (units("OK", "OK"), ()):
        found = dict(line.split(":", 1) for line in report(lines, {}, {}, "gpu", unfit="versions differ"))
        told = {"gpu": "0", "gpu_faulty": str(max(1, len(lines))), "gpu_reason": "versions differ"}
        assert found == {**told, "gpu_free": "0", "gpu_linked": "0"}


def test_free_gpus_and_the_largest_linked_set_of_them_are_told() -> None:
    """Two pairs with NVLink each: GPUs 0 and 1, 2 and 3."""
    links = [(0, 4000, 1, 1), (4000, 0, 1, 1), (1, 1, 0, 4000), (1, 1, 4000, 0)]
    lines = tuple(UnitLine(f"GPU-{i}", i, i, "", "", 0, links[i], "OK") for i in range(4))
    for held, free, linked in (((), 4, 2), ((1,), 3, 2), ((1, 2), 2, 1), ((0, 1, 2, 3), 0, 0)):
        found = dict(line.split(":", 1) for line in report(lines, {}, {f"GPU-{i}": JOB for i in held}, "gpu"))
        assert (found["gpu_free"], found["gpu_linked"]) == (str(free), str(linked))
        assert found["gpu"] == "4"


def test_a_reason_fits_the_protocol_whatever_is_in_it() -> None:
    assert one_word_line("a:b,c\nbegin\nhost:gpu:9\nend") == "a b c begin host gpu 9 end"
    assert len(one_word_line("x" * 1000)) == 200
