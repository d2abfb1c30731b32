"""Rules for all tests."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.state.files import Directory
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


@pytest.fixture(autouse=True)
def let_go_of_directories(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the directories that a test opened: all tests share one process, whose descriptors would run out.

    A hook or an agent has its few to its end, and so the class does not close itself.
    """
    held: set[int] = set()
    opened, closed = Directory.__init__, Directory.close

    def opening(self: Directory, *args: Any, **named: Any) -> None:
        opened(self, *args, **named)
        held.add(self.fd)

    def closing(self: Directory) -> None:
        held.discard(self.fd)
        closed(self)

    monkeypatch.setattr(Directory, "__init__", opening)
    monkeypatch.setattr(Directory, "close", closing)
    yield
    for fd in held:
        os.close(fd)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say that the tests for a real GPU were not run, where they were wanted: they are not there to be skipped."""
    wanted = {Path(config.invocation_params.dir, arg).resolve() for arg in config.args} & {HERE, HERE / "hardware"}
    if wanted and isinstance(found := place(), Nowhere):
        terminalreporter.write_line(f"tests/hardware: not run, {found.why}")
