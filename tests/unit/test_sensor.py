"""Grid Engine's load sensor: what is reported when."""

import pytest

from nodeagent.cli.sge_sensor_command import models, one_word_line, report
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


def test_a_retired_gpu_that_is_gone_counts_as_faulty_and_the_rest_is_offered_as_it_is_free() -> None:
    found = values("OK", "OK", "OK", retired={"GPU-7": {"reason": "gone"}}, owners={"GPU-0": JOB})
    assert found == {"gpu": "2", "gpu_faulty": "1", "gpu_reason": "gone"}
    assert values(retired={"GPU-7": {"reason": "gone"}}) == {"gpu_faulty": "0", "gpu_reason": "none"}


def test_where_the_number_is_not_the_sensors_to_tell_it_tells_the_rest() -> None:
    for unfit in ("", "versions differ"):
        told = dict(line.split(":", 1) for line in report(units("OK", "FAILED"), {}, {}, "", unfit=unfit))
        assert "" not in told and "gpu" not in told
        assert told["gpu_reason"] == (unfit or "why 1")


def test_a_reason_fits_the_protocol_whatever_is_in_it() -> None:
    assert one_word_line("a:b,c\nbegin\nhost:gpu:9\nend") == "a b c begin host gpu 9 end"
    assert len(one_word_line("x" * 1000)) == 200


def test_a_shared_gpu_counts_as_often_as_jobs_may_share_it() -> None:
    lines = units("OK", "OK", "OK")
    lines[0].slots, lines[1].slots = 4, 2
    owners = {"GPU-0@0": JOB, "GPU-0@5": JOB, "GPU-1": HOLD}

    def offered(**how: object) -> str:
        return next(report(lines, how.get("retired", {}), how.get("owners", {}), "gpu"))  # type: ignore[arg-type]

    assert offered() == offered(owners={"GPU-0@0": JOB}) == "gpu:7"
    assert offered(owners=owners) == "gpu:3"  # two of four shares, and the whole GPU; none of the one held by hand
    assert offered(retired={"GPU-0": {"reason": "x"}}, owners={"GPU-1@1": JOB}) == "gpu:2"


def test_instances_count_one_each_and_go_with_their_gpu() -> None:
    lines = tuple(UnitLine(f"MIG-{n}", -1, 0, "", "", 0, (), "OK", "", "GPU-0") for n in "abc")
    assert next(report(lines, {}, {}, "gpu")) == "gpu:3"
    assert next(report(lines, {}, {"MIG-b": HOLD}, "gpu")) == "gpu:2"
    assert list(report(lines, {"GPU-0": {"reason": "x"}}, {}, "gpu"))[:2] == ["gpu:0", "gpu_faulty:3"]


def test_the_models_of_a_node_are_one_word_that_a_jobs_pattern_finds() -> None:
    names = ("NVIDIA A100-SXM4-80GB", "Tesla T4", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB MIG 1g.10gb")
    lines = tuple(UnitLine(f"GPU-{at}", at, at, "", name, 0, (), "OK") for at, name in enumerate(names))
    assert models(lines) == "A100-SXM4-80GB+A100-SXM4-80GB-MIG-1g.10gb+T4"
    assert models(()) == "none"
