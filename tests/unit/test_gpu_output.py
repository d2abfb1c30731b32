"""What the probe process says to its parent: whole lines, in order, and no more wake-ups than there are waits."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from nodeagent.gpu.output import Output

Pipe = tuple[int, int]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def read(pipe: Pipe) -> list[dict[str, object]]:
    try:
        return [json.loads(line) for line in os.read(pipe[0], 65536).splitlines()]
    except BlockingIOError:
        return []


def test_what_is_sent_is_there(pipe: Pipe) -> None:
    Output(pipe[1]).send(begin={"index": 3})
    assert read(pipe) == [{"begin": {"index": 3}}]


def test_what_is_held_goes_before_the_next_in_its_order(pipe: Pipe) -> None:
    output = Output(pipe[1])
    output.hold(gpu=0)
    output.hold(gpu=1)
    assert read(pipe) == []
    output.send(xid=79)  # the event thread's, at any time
    assert read(pipe) == [{"gpu": 0}, {"gpu": 1}, {"xid": 79}]
    output.send(end={})
    assert read(pipe) == [{"end": {}}]
