"""A program that is asked line by line: its answers, its complaints, and what it does instead of answering."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nodeagent.errors import CommandFailed
from nodeagent.scheduler.command import Conversation

ANSWERS = """
printf '> '
while read -r line; do
  ECHO
  case $line in
    quiet) ;;
    two) printf 'one\\ntwo > with a prompt inside\\n\\n' ;;
    complain) echo 'it is refused' >&2 ;;
    die) echo 'out of memory' >&2; exit 3 ;;
    hang) echo 'trying again' >&2; exec sleep 60 ;;
  esac
  printf '> '
done
"""


@pytest.fixture(params=["", 'printf "%s\\n" "$line"'], ids=["silent", "echoing"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A program that prompts, as scontrol does with its line editor and without."""
    path = tmp_path / "program"
    path.write_text("#!/bin/sh" + ANSWERS.replace("ECHO", str(request.param)))
    path.chmod(0o755)
    return path


def test_each_line_has_its_answer_however_many_are_given_at_once(program: Path) -> None:
    with Conversation((str(program),), "> ") as asked:
        assert asked.ask("two") == ["one\ntwo > with a prompt inside\n\n"]
        assert asked.ask("quiet", "two", "quiet") == ["", "one\ntwo > with a prompt inside\n\n", ""]
        assert asked.complaints() == ""
        assert asked.ask("complain") == [""] and asked.complaints() == "it is refused\n"


def test_one_that_ends_or_hangs_is_an_error_that_says_what_it_said(program: Path) -> None:
    with pytest.raises(CommandFailed) as died, Conversation((str(program),), "> ") as asked:
        asked.ask("die")
    assert (died.value.status, died.value.output) == (3, "out of memory\n")
    began = time.monotonic()
    with pytest.raises(CommandFailed) as hung, Conversation((str(program),), "> ", timeout=0.5) as asked:
        asked.ask("hang")
    assert (hung.value.status, hung.value.output) == (None, "trying again\n")
    assert time.monotonic() - began < 5, "it is not waited for"


def test_one_that_is_not_there_or_never_prompts_is_an_error() -> None:
    with pytest.raises(CommandFailed) as missing:
        Conversation(("/no/such/program",), "> ")
    assert missing.value.status == 127
    with pytest.raises(CommandFailed), Conversation(("/bin/true",), "> "):
        pass
    with pytest.raises(CommandFailed), Conversation(("/bin/sleep", "60"), "> ", timeout=0.2):
        pass
