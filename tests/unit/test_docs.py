"""The page of checks is made from the registry, and is what is in the tree."""

from __future__ import annotations

import pytest

from nodeagent.health.checks import CHECKS
from tests.make_docs import PAGE, PARTS, BadDocstring, page, parts_of, tuning

WHOLE = "one: it is so.\n\n" + "\n".join(f"{part}: what\nit is." for part in PARTS)


def test_the_page_in_the_tree_is_the_one_that_the_checks_make() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(CHECKS), "make docs"


def test_a_check_says_everything_about_itself() -> None:
    assert parts_of("one", WHOLE) == {"": "it is so.", **dict.fromkeys(PARTS, "what it is.")}


@pytest.mark.parametrize(
    "doc",
    [
        "",
        WHOLE.replace("one:", "other:"),
        WHOLE.replace("Source: what\nit is.\n", ""),
        WHOLE.replace("Action: what\nit is.", "Action: "),
        WHOLE.replace("\n\n", "\n\nMore.\n"),
        WHOLE + "\nSource: again.",
    ],
)
def test_a_check_that_leaves_something_out_is_refused(doc: str) -> None:
    with pytest.raises(BadDocstring):
        parts_of("one", doc)


@pytest.mark.parametrize(
    ("check", "words", "told"),
    [
        ("one", "any.", "`health.strikes` (1), "),
        ("driver-init", "any.", "`health.strikes` (3), "),
        (
            "one",
            "less than `health.pcie.width` or `…generation`, `health.pcie.width`",
            "`health.pcie.width` (0), `health.pcie.generation` (0), `health.strikes` (1), ",
        ),
        ("xid", "`health.xid_actions`", "`health.xid_actions` ({})"),
    ],
)
def test_how_a_check_is_tuned_is_told_by_the_settings_that_it_names(check: str, words: str, told: str) -> None:
    assert tuning(check, {"Threshold": words}).startswith(told)


def test_a_setting_that_there_is_not_is_refused() -> None:
    with pytest.raises(BadDocstring):
        tuning("one", {"Threshold": "`health.no.such`"})
