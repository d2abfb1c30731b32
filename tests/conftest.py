"""Rules for all tests."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.hardware.place import Nowhere, place

HERE = Path(__file__).resolve().parent
TOGETHER = "packaging"
"""The directory whose files share what is dear to set up: one process runs them all, first, for it waits for long."""
BUSY = ("contract/test_races.py", "contract/test_memory_flat.py")
"""Files that keep all processors busy by themselves: they run late, beside tests that measure no time."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI=true a skip is a failure: there, everything that a test needs is to be had."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped although CI=true: {report.longrepr}"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes run tests (`-n`), the tests of a file stay together, in their order.

    First of all such hooks: pytest-xdist's own reads the groups.
    """

    def turn(item: pytest.Item) -> int:
        name = item.path.relative_to(HERE).as_posix()
        if name.startswith(f"{TOGETHER}/"):
            return -1
        return 2 if name.startswith("unit/") else int(name in BUSY)

    items.sort(key=turn)
    for item in items:
        name = item.path.relative_to(HERE).as_posix()
        group = TOGETHER if name.startswith(f"{TOGETHER}/") else "busy" if name in BUSY else name
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say that the tests for a real GPU were not run, where they were wanted: they are not there to be skipped."""
    wanted = {Path(config.invocation_params.dir, arg).resolve() for arg in config.args} & {HERE, HERE / "hardware"}
    if wanted and isinstance(found := place(), Nowhere):
        terminalreporter.write_line(f"tests/hardware: not run, {found.why}")
