"""Rules for all tests."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.hardware.place import Nowhere, place

HERE = Path(__file__).resolve().parent


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


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say that the tests for a real GPU were not run, where they were wanted: they are not there to be skipped."""
    wanted = {Path(config.invocation_params.dir, arg).resolve() for arg in config.args} & {HERE, HERE / "hardware"}
    if wanted and isinstance(found := place(), Nowhere):
        terminalreporter.write_line(f"tests/hardware: not run, {found.why}")
