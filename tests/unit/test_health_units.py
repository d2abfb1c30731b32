"""Which units a GPU is for locks, as its mode of MIG comes, goes and cannot be read."""

from __future__ import annotations

import pytest

from nodeagent.gpu.facts import MigInstance
from nodeagent.health.units import Instances, mig_instances, units_of
from tests.unit.test_health_facts import gpu, uuid

MADE = (MigInstance("MIG-1", 1, 0), MigInstance("MIG-2", 2, 0))
DIVIDED: Instances = {uuid(0): MADE, uuid(1): MADE[:1]}


@pytest.mark.parametrize(
    ("value", "now"),
    [
        ({"mig_enabled": True, "mig": MADE[1:]}, {uuid(0): MADE[1:], uuid(1): MADE[:1]}),
        ({"mig_enabled": True, "mig": ()}, {uuid(0): (), uuid(1): MADE[:1]}),
        ({"mig_enabled": False}, {uuid(1): MADE[:1]}),
        ({"mig_enabled": None}, DIVIDED),
    ],
)
def test_instances_are_those_just_read_or_as_before_where_the_mode_is_not_known(
    value: dict[str, object], now: Instances
) -> None:
    before = dict(DIVIDED)
    assert mig_instances((gpu(0, **value),), before) == now
    assert before == DIVIDED, "what came in is left as it was"


def test_a_whole_gpu_that_never_was_divided_has_none() -> None:
    assert mig_instances((gpu(0, mig_enabled=False), gpu(1)), {}) == {}
    assert mig_instances((gpu(0, mig_enabled=False), gpu(1, mig_enabled=True, mig=MADE)), {}) == {uuid(1): MADE}


def test_what_can_be_locked_is_the_gpu_or_its_instances() -> None:
    assert units_of(uuid(0), DIVIDED) == ("MIG-1", "MIG-2")
    assert units_of(uuid(2), DIVIDED) == (uuid(2),)
    assert units_of(uuid(3), {uuid(3): ()}) == (), "divided, and nothing made of it yet"
