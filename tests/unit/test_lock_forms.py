"""Whole GPUs, instances and shares: what is free of a GPU, and no double grant when it changes its form under locks."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nodeagent.cli import locks_command
from nodeagent.errors import UnitHeld, UnitsUnavailable
from nodeagent.hook import epilog
from nodeagent.hook.node import Node
from nodeagent.hook.prolog import UnitsBusy, UnitsRetired, record, take
from nodeagent.lock.model import is_pattern, matches
from nodeagent.lock.occupancy import Occupancy
from nodeagent.lock.record import Owner, decode_owner
from nodeagent.state.files import Directory
from nodeagent.state.hook_conf import HookConf
from nodeagent.state.verdict_file import DEGRADED, OK, UnitLine, VerdictFile
from tests.support import LaidOutNode

GPU = "GPU-0"
BOOT = "a boot"


def lines(gpu: str = GPU, form: str = "whole", index: int = 0, state: str = OK) -> list[UnitLine]:
    """Return a GPU's lines: `whole`, `shares K`, or `instances NAMES`."""
    kind, _, rest = form.partition(" ")
    if kind == "instances":
        return [UnitLine(f"MIG-{gpu}-{n}", -1, index, "", "H100 MIG 1g", 0, (), state, "", gpu) for n in rest.split()]
    return [UnitLine(gpu, index, index, "", "H100", 0, (), state, "", gpu, (), int(rest or 1))]


def node_of(state: Directory, units: list[UnitLine], placement: str = "pack") -> Node:
    """Return a node with these units, any two of them linked equally well."""
    for at, unit in enumerate(units):
        unit.links = tuple(0 if other == at else 5 for other in range(len(units)))
    return Node(state, BOOT, HookConf({"placement": placement}), VerdictFile(BOOT, 0.0, tuple(units)), fresh=True)


def got(node: Node, job: str, count: int = 1, model: str = "") -> list[str]:
    """Take for a job and return the units' names."""
    assert node.verdict is not None
    owner = node.owner("sge", job)
    taken = take(node, node.verdict, owner, count, 0.0, model)
    assert [unit.unit for unit in taken] == list(owner.units)
    assert [unit.gpu for unit in taken] == list(owner.gpus)
    return list(owner.units)


@pytest.fixture
def state(tmp_path: Path) -> Directory:
    tmp_path.chmod(0o755)
    return Directory(str(tmp_path / "state"), create=True)


# -- transitions ------------------------------------------------------------------------------------------------------

MIG_A, MIG_B = f"MIG-{GPU}-a", f"MIG-{GPU}-b"


@pytest.mark.parametrize(
    ("held", "form", "free"),
    [
        # the form is the one in which the locks were made
        ([], "whole", 1),
        ([GPU], "whole", 0),
        ([], "shares 3", 3),
        ([f"{GPU}@0"], "shares 3", 2),
        ([f"{GPU}@1", f"{GPU}@2"], "shares 3", 1),
        ([f"{GPU}@0", f"{GPU}@1", f"{GPU}@2"], "shares 3", 0),
        ([MIG_A], "instances a b", 1),
        ([MIG_A, MIG_B], "instances a b", 0),
        # sharing switched on, off, wider, narrower
        ([GPU], "shares 3", 0),
        ([f"{GPU}@0"], "whole", 0),
        ([f"{GPU}@2"], "whole", 0),
        ([f"{GPU}@0", f"{GPU}@1", f"{GPU}@2"], "shares 4", 1),
        ([f"{GPU}@2"], "shares 2", 1),
        ([f"{GPU}@2", f"{GPU}@3"], "shares 2", 0),
        ([f"{GPU}@1", f"{GPU}@2", f"{GPU}@3"], "shares 2", 0),
        # MIG mode switched on, off, the GPU cut up anew
        ([GPU], "instances a b", 0),
        ([MIG_A], "whole", 0),
        ([MIG_A], "shares 3", 0),
        ([f"{GPU}@0"], "instances a b", 0),
        ([MIG_A], "instances b c", 2),
        ([MIG_A], "instances a", 0),
        # another GPU's are no matter
        (["GPU-9", "GPU-9@0", "MIG-GPU-9-a"], "whole", 1),
    ],
)
def test_what_is_free_in_each_form_under_locks_of_each_form(held: list[str], form: str, free: int) -> None:
    def gpu_of(unit: str) -> str:
        return unit.removeprefix("MIG-").removesuffix("-a").removesuffix("-b").partition("@")[0]

    owners = {unit: Owner("sge", "1", grant="g", units=(unit,), gpus=(gpu_of(unit),)) for unit in held}
    units = lines(form=form)
    occupied = Occupancy(owners, units)
    assert sum(occupied.free(unit) for unit in units) == free
    for unit in units:
        name, holder = occupied.take(unit)
        assert bool(name) == bool(occupied.free(unit)) != bool(holder)
        assert name not in held and (holder in held or not holder)


def test_an_instance_that_vanishes_keeps_its_lock_until_its_job_ends(state: Directory) -> None:
    node = node_of(state, lines(form="instances a b"))
    assert got(node, "1") == [MIG_A]
    node = node_of(state, lines(form="instances b"))
    assert list(node.store.owners()) == [MIG_A]
    assert got(node, "2") == [MIG_B]
    with pytest.raises(UnitsUnavailable):
        got(node, "3")
    node = node_of(state, lines(form="instances a b"))  # it is back, under the same name
    with pytest.raises(UnitsBusy):
        got(node, "3")
    assert list(epilog.release(state, "sge", "", "1")) == [MIG_A]
    assert got(node, "3") == [MIG_A]


def test_the_owner_says_whose_instance_it_was_whatever_becomes_of_it(state: Directory) -> None:
    node = node_of(state, lines(form="instances a"))
    got(node, "1")
    owner = node.store.owners()[MIG_A]
    assert owner.gpu_of(MIG_A) == GPU and decode_owner("x", owner.encode()).gpus == (GPU,)
    assert owner.gpu_of("GPU-7@3") == "GPU-7" and Owner("sge").gpu_of(MIG_A) == MIG_A


# -- shares -----------------------------------------------------------------------------------------------------------


def test_a_job_gets_shares_of_different_gpus(state: Directory) -> None:
    node = node_of(state, [*lines("GPU-0", "shares 4"), *lines("GPU-1", "shares 4")])
    assert got(node, "1", 2) == ["GPU-0@0", "GPU-1@0"]
    assert got(node, "2", 2) == ["GPU-0@1", "GPU-1@1"]
    with pytest.raises(UnitsUnavailable):
        got(node, "3", 3)


@pytest.mark.parametrize(
    ("placement", "order"), [("pack", "0 0 0 1 1 1"), ("spread", "0 1 0 1 0 1")], ids=["pack", "spread"]
)
def test_pack_fills_the_gpu_most_in_use_and_spread_the_least(state: Directory, placement: str, order: str) -> None:
    node = node_of(state, [*lines("GPU-0", "shares 3"), *lines("GPU-1", "shares 3")], placement)
    taken = [got(node, str(job))[0] for job in range(6)]
    assert " ".join(unit[4] for unit in taken) == order
    with pytest.raises(UnitsBusy):
        got(node, "6")
    epilog.release(state, "sge", "", "4")
    assert got(node, "7") == [taken[4]]


def test_a_healthy_gpu_comes_before_a_fuller_one(state: Directory) -> None:
    node = node_of(state, [*lines("GPU-0", "shares 2", state=DEGRADED), *lines("GPU-1", "shares 2")])
    assert [got(node, str(job))[0] for job in range(3)] == ["GPU-1@0", "GPU-1@1", "GPU-0@0"]


def test_a_retired_or_held_gpu_gives_no_share_and_no_instance(state: Directory) -> None:
    units = [*lines("GPU-0", "shares 2"), *lines("GPU-1", "instances a"), *lines("GPU-2", "shares 2")]
    node = node_of(state, units)
    with node.store.exclusive():
        node.store.retire("GPU-0", [("reason", "broken")])
        node.store.retire("GPU-1", [("reason", "broken")])
        node.store.claim(Owner("hold", grant="h", units=("GPU-2",)))
    with pytest.raises(UnitsBusy):
        got(node, "1")
    with pytest.raises(UnitsRetired):
        got(node, "1", 2)
    done = record(node, node.owner("slurm", "5"), units)
    assert [unit for unit, _ in done.unfit] == ["GPU-0", "MIG-GPU-1-a", "GPU-2"] and not done.locked


def test_slurms_grants_of_one_gpu_are_recorded_on_its_shares_one_after_the_other(state: Directory) -> None:
    units = lines(form="shares 2")
    node = node_of(state, units)
    for job, name in (("1", f"{GPU}@0"), ("2", f"{GPU}@1")):
        assert record(node, node.owner("slurm", job), units).locked == (name,)
    done = record(node, node.owner("slurm", "3"), units)
    assert done.locked == () and done.conflicts == [(GPU, "slurm 1")]
    assert record(node, node.owner("slurm", "1"), units).locked == (f"{GPU}@0",)  # the same job, run again


# -- models -----------------------------------------------------------------------------------------------------------

A100, H100 = "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("pattern", "models"),
    [
        ("A100", {A100, f"{A100} MIG 1g.10gb"}),
        ("a100*", {A100, f"{A100} MIG 1g.10gb"}),
        ("*80GB*", {A100, H100, f"{A100} MIG 1g.10gb"}),
        ("a100_sxm4 80gb", {A100, f"{A100} MIG 1g.10gb"}),
        ("80GB*A100", set()),
        ("1g.10gb", {f"{A100} MIG 1g.10gb"}),
        ("h100|T4", {H100, "Tesla T4"}),
        ("V100", set()),
        ("*", {A100, H100, "Tesla T4", f"{A100} MIG 1g.10gb"}),
    ],
)
def test_which_models_a_pattern_means(pattern: str, models: set[str]) -> None:
    assert is_pattern(pattern)
    assert {model for model in (A100, H100, "Tesla T4", f"{A100} MIG 1g.10gb") if matches(model, pattern)} == models


@pytest.mark.parametrize("text", ["", "!A100", "A100&H100", "[AH]100", "A?00", "A100\n", "(A100)", "|" * 100000])
def test_an_expression_is_no_pattern(text: str) -> None:
    assert not is_pattern(text)


def test_a_job_gets_units_of_the_model_it_asks_for(state: Directory) -> None:
    units = [*lines("GPU-0"), *lines("GPU-1"), *lines("GPU-2", "instances a")]
    units[1].model = A100
    node = node_of(state, units)
    assert got(node, "1", model="a100*") == ["GPU-1"]
    with pytest.raises(UnitsBusy, match="of model A100 asked for; this node has 1"):
        got(node, "2", model="A100")
    with pytest.raises(UnitsUnavailable, match="has 0") as told:
        got(node, "2", model="V100")
    assert type(told.value) is UnitsUnavailable
    assert got(node, "3", model="1g") == ["MIG-GPU-2-a"]
    assert got(node, "4") == ["GPU-0"]


# -- any sequence -----------------------------------------------------------------------------------------------------

FORMS = ("whole", "shares 2", "shares 3", "instances a b", "instances b c")
GPUS = ("GPU-0", "GPU-1")
jobs = st.sampled_from(list("12345"))


class Forms(RuleBasedStateMachine):
    """Jobs come and go while GPUs change their form; `held` says which units each job has, as this test granted them.

    What must be true of the GPU itself is checked, not the rules by which it is kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="lock-forms-"))
        self.state = Directory(str(self.directory / "state"), create=True)
        self.form = dict.fromkeys(GPUS, "whole")
        self.held: dict[str, list[str]] = {}

    def teardown(self) -> None:
        self.state.close()
        shutil.rmtree(self.directory)

    @initialize()
    def node_is_seen_anew(self) -> None:
        units = [unit for at, gpu in enumerate(GPUS) for unit in lines(gpu, self.form[gpu], at)]
        self.node = node_of(self.state, units)

    @rule(gpu=st.sampled_from(GPUS), form=st.sampled_from(FORMS))
    def a_gpu_changes_its_form(self, gpu: str, form: str) -> None:
        self.form[gpu] = form
        self.node_is_seen_anew()

    @rule(job=jobs, count=st.integers(1, 2))
    def a_job_is_given(self, job: str, count: int) -> None:
        self.held.pop(job, None)
        try:
            units = got(self.node, job, count)
        except UnitsUnavailable as error:
            assert error.free < count
            return
        self.check_granted(job, units)

    @rule(job=jobs, gpu=st.sampled_from(GPUS))
    def slurm_gives(self, job: str, gpu: str) -> None:
        assert self.node.verdict is not None
        self.held.pop(job, None)
        mine = [unit for unit in self.node.verdict.units if unit.gpu == gpu][:1]
        done = record(self.node, self.node.owner("sge", job), mine)
        assert bool(done.locked) != bool(done.conflicts) or not mine
        if done.locked:
            self.check_granted(job, list(done.locked))

    @rule(job=jobs)
    def a_job_ends(self, job: str) -> None:
        assert sorted(epilog.release(self.state, "sge", "", job)) == sorted(self.held.pop(job, []))

    def check_granted(self, job: str, units: list[str]) -> None:
        devices = [unit.partition("@")[0] for unit in units]
        assert len(set(devices)) == len(units), "one device, granted to one job twice"
        for unit, device in zip(units, devices):
            gpu = next(gpu for gpu in GPUS if gpu in device)
            form, _, rest = self.form[gpu].partition(" ")
            others = [name for names in self.held.values() for name in names if gpu in name]
            if form == "whole":
                assert unit == gpu and not others, f"{gpu} is whole, and {others} are held of it"
            elif form == "shares":
                assert all(name.startswith(f"{gpu}@") for name in others) and unit not in others
                assert len(others) < int(rest), f"more than {rest} jobs on {gpu}"
            else:
                assert all(name.startswith("MIG-") for name in others) and unit not in others
                assert unit.rpartition("-")[2] in rest.split()
        self.held[job] = units

    @invariant()
    def the_store_says_what_was_granted(self) -> None:
        owners = Node(self.state, BOOT).store.owners()
        assert sorted(owners) == sorted(unit for units in self.held.values() for unit in units)
        assert all(unit in self.held[owner.job] for unit, owner in owners.items())


TestForms = Forms.TestCase
TestForms.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize(("unit", "gpus"), [("GPU-0@1", ()), ("MIG-0", ("GPU-0",))], ids=["a share", "an instance"])
def test_a_gpu_of_which_a_part_is_in_use_is_not_held_by_hand(
    unit: str, gpus: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = LaidOutNode(tmp_path, "sge")
    with node.store.exclusive():
        node.store.claim(Owner("sge", job="7", grant="g", units=(unit,), gpus=gpus))
    monkeypatch.setattr(locks_command, "unit_named", lambda *_: "GPU-0")
    options = argparse.Namespace(config=node.config, action="hold", units=["0"], reason="")
    with pytest.raises(UnitHeld, match=unit):
        locks_command.run(options)
    assert list(node.store.owners()) == [unit]
