"""Whose name history has: the kernel's login uid, else what sudo says, else the process's own."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from nodeagent.cli.login import login

ME = pwd.getpwuid(os.getuid()).pw_name


def proc(tmp_path: Path, text: str) -> str:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "loginuid").write_text(text)
    return str(tmp_path)


def test_the_login_uid_goes_before_what_sudo_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "somebody")
    place = proc(tmp_path, "0\n")
    assert login(place) == "root"


def test_a_login_uid_without_a_name_is_a_number(tmp_path: Path) -> None:
    assert login(proc(tmp_path, "3999999\n")) == "3999999"


@pytest.mark.parametrize("text", ["4294967295", "", "no number"])
def test_without_one_sudo_is_believed_of_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    place = proc(tmp_path, text)
    monkeypatch.setenv("SUDO_USER", "alice")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert login(place) == "alice"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert login(place) == ME
    monkeypatch.delenv("SUDO_USER")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert login(place) == ME


def test_a_kernel_without_login_uids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("LOGNAME", "forged")
    assert login(str(tmp_path)) == ME
