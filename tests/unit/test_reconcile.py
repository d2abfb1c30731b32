"""Locks that outlived their owner."""

import pytest

from nodeagent.lock.reconcile import gone
from nodeagent.lock.record import Owner

BOOT = "this-boot"


def owner(scheduler: str = "slurm", boot: str = BOOT, units: tuple[str, ...] = ("GPU-a", "GPU-b")) -> Owner:
    return Owner(scheduler, job="1", grant="g", pid="10", pid_start="500", boot_id=boot, units=units)


def judged(held: Owner, units: tuple[str, ...] = ("GPU-a", "GPU-b"), start: str = "500") -> dict[str, str]:
    return gone(dict.fromkeys(units, held), BOOT, lambda _: start)


def test_a_complete_grant_of_a_job_stays_although_its_hook_is_gone() -> None:
    assert judged(owner(), start="") == {}


def test_a_grant_of_another_boot_is_over() -> None:
    assert "boot" in judged(owner(boot="earlier"))["g"]
    assert gone({"GPU-a": owner(boot="earlier")}, "", lambda _: "500") == {}


@pytest.mark.parametrize("start", ["", "501"])
def test_an_exec_is_over_when_its_process_is_gone_or_another_has_its_number(start: str) -> None:
    assert "gone" in judged(owner("local"), start=start)["g"]
    assert judged(owner("local")) == {}


def test_a_grant_cut_in_two_by_a_crash_is_over_once_its_hook_is_gone() -> None:
    assert judged(owner(), units=("GPU-a",)) == {}
    assert "incomplete" in judged(owner(), units=("GPU-a",), start="")["g"]


def test_a_unit_of_the_grant_that_another_holds_makes_it_incomplete() -> None:
    other = Owner("slurm", job="2", grant="h", boot_id=BOOT, units=("GPU-b",))
    assert set(gone({"GPU-a": owner(), "GPU-b": other}, BOOT, lambda _: "")) == {"g"}


def test_a_unit_that_cannot_be_read_is_not_taken_for_a_missing_one() -> None:
    unreadable = Owner("unreadable", grant="GPU-b", units=("GPU-b",))
    assert gone({"GPU-a": owner(), "GPU-b": unreadable}, BOOT, lambda _: "") == {}


@pytest.mark.parametrize("word", ["hold", "maintenance", "unreadable"])
def test_what_is_no_job_stays_until_somebody_releases_it(word: str) -> None:
    assert judged(owner(word, boot="earlier"), start="") == {}
