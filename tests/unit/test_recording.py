"""Recordings: facts come back from lines as they were; what is none is named; what is anonymous names nobody."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from math import inf
from typing import Any

import pytest

from nodeagent.errors import BadRecording
from nodeagent.gpu import facts as facts_module
from nodeagent.gpu.facts import GpuFacts, MigInstance, NodeFacts, Process, XidEvent
from nodeagent.gpu.plain import from_plain, to_plain
from nodeagent.replay.anonymous import Anonymous
from nodeagent.replay.recording import SCHEMA, Entry, Header, Recorded, Truth, line_of, read_recording
from tests.unit.fake_gpu import FakeGpuSource, idle_gpu

SAMPLE_OF = {"str": "word", "int": 7, "float": 0.1 + 0.2, "bool": True}
INSTANCE = MigInstance("MIG-1", 1, 0, 40 << 30, 0, "3g.40gb", (3, 4))


def filled(kind: Any) -> Any:
    """Return facts of that kind in which no field is at its default."""
    return kind(**{field.name: sample(str(field.type)) for field in fields(kind)})


def sample(annotation: str) -> Any:
    """Return a value for a field of that type."""
    outer, _, inner = annotation.split(" | ", maxsplit=1)[0].partition("[")
    if outer == "tuple":
        return (sample(inner.partition(",")[0]),) * 2
    if outer in ("dict", "Mapping"):
        return {"key": sample(inner.rstrip("]").partition(", ")[2])} if "object" not in inner else {}
    return SAMPLE_OF[outer] if outer in SAMPLE_OF else filled(getattr(facts_module, outer))


def whole() -> NodeFacts:
    """Return a sweep with something in every field."""
    sweep: NodeFacts = filled(NodeFacts)
    return sweep


def read(lines: Sequence[str]) -> list[Entry]:
    return list(read_recording([f"{line}\n" for line in lines], "file"))


def facts(monotonic: float = 1.0, boot_id: str = "b") -> str:
    return json.dumps({"facts": {"boot_id": boot_id, "monotonic": monotonic}})


HEADER = json.dumps({"schema": SCHEMA, "interval": 10})


def test_no_field_of_the_facts_is_left_out_of_the_test() -> None:
    assert [field.name for field in fields(whole()) if getattr(whole(), field.name) == field.default] == []
    assert to_plain(whole())["gpus"][0]["mig"][0]["caps"] == [7, 7]


def test_facts_come_back_as_they_were() -> None:
    there = json.loads(json.dumps(to_plain(whole())))
    back = from_plain(NodeFacts, there)
    assert back == whole()
    assert repr(back) == repr(whole()), "1 is not True, nor 1.0"


def test_what_is_at_its_default_is_left_out_and_comes_back() -> None:
    assert to_plain(GpuFacts("GPU-1")) == {"uuid": "GPU-1"}
    assert from_plain(GpuFacts, {"uuid": "GPU-1"}) == GpuFacts("GPU-1")
    zero = replace(GpuFacts("GPU-1"), utilization=0.0, error=0, persistence=False)
    assert from_plain(GpuFacts, to_plain(zero)) == zero, "0 is not None"


def test_a_real_sweep_goes_through_a_line() -> None:
    source = FakeGpuSource()
    source.lose(3)
    source.xid(5, 79, gpu_instance=1)
    sweep = replace(source.sample(), xids=source.take_xids())
    source.close()
    entries = [Header("0.2", "n1", 5.0, "2026-01-01T00:00:00Z"), Recorded(1.5, sweep), Truth("GPU-3", "gpu-lost", 1.0)]
    assert read([line_of(entry) for entry in entries]) == entries


def test_what_another_release_wrote_is_read() -> None:
    plain = {**to_plain(whole()), "colour": "green"}
    plain["gpus"][0]["smell"] = {"deep": [1]}
    lines = [
        HEADER[:-1] + ', "mood": 1}',
        json.dumps({"at": 1, "facts": plain, "x": 1}),
        '{"note": "no entry of ours"}',
    ]
    assert read(lines) == [Header(interval=10.0), Recorded(1.0, whole())]


def test_times_are_made_up_from_the_facts_where_they_are_missing() -> None:
    entries = read([HEADER, facts(100.0), facts(112.0), facts(3.0, "other"), facts(8.0, "other")])
    assert [one.at for one in entries if isinstance(one, Recorded)] == [0.0, 12.0, 22.0, 27.0]


def test_a_truth_without_an_end_lasts() -> None:
    assert read([HEADER, '{"truth": {"unit": "", "fault": "xid", "from": 3}}'])[1] == Truth("", "xid", 3.0, inf)


def test_a_line_that_was_being_written_is_passed_over() -> None:
    lines = [f"{HEADER}\n", f"{facts()}\n", facts(11.0)[:-20]]
    assert len(list(read_recording(lines, "file"))) == 2
    with pytest.raises(BadRecording, match="file:3"):
        list(read_recording([*lines[:2], f"{lines[2]}\n", facts(12.0)], "file"))


@pytest.mark.parametrize(
    ("lines", "where"),
    [
        ([], ":1: cannot be replayed: it is empty"),
        (["no JSON"], ":1:"),
        (["[]"], ":1:.*is no object"),
        (['{"schema": "gpu-nodeagent/recording/2"}'], ":1:.*recording/2"),
        (['{"schema": "gpu-nodeagent/status/1"}'], "not 'gpu-nodeagent/recording/1'"),
        ([HEADER, '{"facts": {"boot_id": "b"}}'], ":2:.*NodeFacts.monotonic is missing"),
        ([HEADER, '{"facts": []}'], "NodeFacts.*no object"),
        ([HEADER, '{"facts": {"boot_id": "b", "monotonic": "1"}}'], "NodeFacts.monotonic: '1' is not float"),
        ([HEADER, '{"facts": {"boot_id": "b", "monotonic": true}}'], "True is not float"),
        ([HEADER, '{"facts": {"boot_id": "b", "monotonic": NaN}}'], "NaN is no number"),
        ([HEADER, '{"facts": {"boot_id": "b", "monotonic": 1, "gpus": {}}}'], "NodeFacts.gpus"),
        ([HEADER, '{"facts": {"boot_id": "b", "monotonic": 1, "xids": [{"uuid": 5}]}}'], "XidEvent.uuid: 5 is not str"),
        ([HEADER, '{"at": -1, "facts": {"boot_id": "b", "monotonic": 1}}'], "-1 is no time"),
        ([HEADER, f'{{"at": 5, {facts(1.0)[1:]}', f'{{"at": 4, {facts(2.0)[1:]}'], ":3:.*before the sweep at 5"),
        ([HEADER, '{"truth": {"unit": "x"}}'], ":2:.*fault"),
        ([HEADER, "[" * 100_000], ":2:"),
    ],
)  # fmt: skip
def test_what_is_no_recording_is_named_by_line(lines: list[str], where: str) -> None:
    with pytest.raises(BadRecording, match=where) as caught:
        read(lines)
    assert "\n" not in str(caught.value)


def test_nothing_that_names_machine_or_owner_is_left() -> None:
    hide = Anonymous()
    one = replace(idle_gpu(0), uuid="GPU-5ba1-one", mig=(INSTANCE,), processes=(Process(4711),))
    two = replace(idle_gpu(1), uuid="GPU-5ba1-two")
    event = XidEvent(two.uuid, 79, 5.0, text="Xid 79, name=secret_project")
    sweep = NodeFacts("d4f5-boot", 5.0, gpus=(one, two), xids=(event,), hung=True, hung_uuid=one.uuid)
    first, second = hide.facts(sweep), hide.facts(replace(sweep, boot_id="later"))
    text = json.dumps(to_plain(first))
    for secret in ("5ba1", one.serial, two.serial, "MIG-1", "d4f5", "secret"):
        assert secret not in text
    assert [gpu.uuid for gpu in first.gpus] == [gpu.uuid for gpu in second.gpus], "the same name each time"
    assert len({gpu.uuid for gpu in first.gpus} | {gpu.serial for gpu in first.gpus}) == 4
    assert first.hung_uuid == first.gpus[0].uuid != first.gpus[1].uuid == first.xids[0].uuid
    assert (first.boot_id, second.boot_id) == ("boot-1", "boot-2")
    assert first.gpus[0].mig[0].uuid.startswith("MIG-") and first.gpus[0].uuid.startswith("GPU-")
    assert replace(first.gpus[1], uuid="", serial="") == replace(two, uuid="", serial="")
