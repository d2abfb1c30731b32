"""What is made of mutmut's results, and of the code before it is given to mutmut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.mutants import specimen
from tests.mutants.result import Module, count, enough, read, render


def module(caught: int, survivors: int = 0, untried: int = 0) -> Module:
    return Module("m", caught, ["s"] * survivors, ["u"] * untried)


@pytest.mark.parametrize("code", [1, 3, 36, 24, 255, -24, -11, -9])
def test_a_mutant_that_fails_a_test_hangs_or_crashes_is_caught(code: int) -> None:
    found = count("m", {"a": code})
    assert (found.caught, found.mutants, found.survivors) == (1, 1, [])


def test_one_that_passes_the_tests_or_is_called_by_none_is_not() -> None:
    found = count("m", {"a": 0, "b": 33, "c": 5, "d": 1})
    assert (found.caught, found.mutants) == (1, 4)
    assert found.survivors == ["a", "b (no test)", "c (no test)"]


@pytest.mark.parametrize("code", [None, 2, 34, 35])
def test_one_without_a_result_is_neither(code: int | None) -> None:
    found = count("m", {"a": code})
    assert (found.mutants, found.untried) == (0, ["a"])


@pytest.mark.parametrize(
    ("modules", "verdict"),
    [
        ([module(9, 1)], True),
        ([module(8999, 1001)], False),
        ([module(0, 1), module(9)], True),
        ([module(10), module(0, 2)], False),
        ([module(10, untried=1)], False),
        ([module(0)], False),
        ([], False),
    ],
)
def test_nine_of_ten_of_all_together_are_enough(modules: list[Module], verdict: bool) -> None:
    assert enough(modules) is verdict


def test_the_report_has_a_row_a_module_its_survivors_and_the_share_of_all() -> None:
    whole = [Module("one", 2, ["x"]), Module("two", 1)]
    lines = list(render(whole))
    assert [line.split() for line in lines[1:]] == [
        ["one", "3", "2", "66.6", "%"],
        ["x"],
        ["two", "1", "1", "100.0", "%"],
        ["all", "4", "3", "75.0", "%", "(limit", "90", "%)"],
    ]
    assert list(render([Module("one", untried=["y"])]))[-1] == "1 were not tried, such as y"


def test_results_are_read_by_module_and_may_be_chosen_by_name(tmp_path: Path) -> None:
    for name, results in (("a", {"p.a.x__mutmut_1": 1, "p.a.x__mutmut_2": 0}), ("b", {"p.b.y__mutmut_1": 1})):
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / f"{name}.py.meta").write_text(json.dumps({"exit_code_by_key": results}))
    assert [(one.name, one.caught, one.mutants) for one in read(tmp_path)] == [("p.a", 1, 2), ("p.b", 1, 1)]
    assert [(one.name, one.caught, one.mutants) for one in read(tmp_path, ["p.a.x*_1"])] == [("p.a", 1, 1)]


def test_properties_are_laid_open_and_are_properties_still() -> None:
    source = (
        "class One:\n    @property\n    def two(self):\n        return 2\n\n    @staticmethod\n    def three():\n"
        "        return 3\n\n    @property\n    def four(self):\n        return self.two * 2\n"
    )
    changed = specimen.without_property_decorators(source)
    assert "@property" not in changed and "@staticmethod" in changed
    made: dict[str, type] = {}
    exec(changed, made)  # noqa: S102 - the sample above
    one = made["One"]()
    assert (one.two, one.three(), one.four) == (2, 3, 4)


def test_the_copy_has_the_tests_of_health_and_no_others(tmp_path: Path) -> None:
    specimen.make(tmp_path / "copy")
    chosen = specimen.tests(tmp_path / "copy")
    assert "tests/unit/test_health_verdict.py" in chosen and "tests/unit/test_config.py" not in chosen
    assert all((tmp_path / "copy" / file).is_file() for file in chosen)
    assert "@property" not in (tmp_path / "copy/nodeagent/health/verdict.py").read_text(encoding="utf-8")
