"""The driver lent to whoever resets a GPU: when, and what an agent that looks at no GPU still does."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

import pytest

import nodeagent.config.compile as compiling
from nodeagent.agent.cycle import RESTORED_BY_HAND
from nodeagent.agent.lending import LONGEST, RELEASE_DRIVER, Lending, lending
from nodeagent.cli import release_driver_command
from nodeagent.config.model import Config, Loaded
from nodeagent.config.model import Scheduler as SchedulerSettings
from nodeagent.errors import AgentSilent
from nodeagent.gpu.facts import MigInstance, NodeFacts, Process
from nodeagent.lock.cleaning import EVENTS, open_attendant, wake
from nodeagent.lock.record import Owner
from nodeagent.metrics.native import render
from nodeagent.metrics.page import render_page
from nodeagent.report import published
from nodeagent.state import events
from nodeagent.state.hook_conf import Gres
from nodeagent.state.verdict_file import read_verdict
from tests.unit.fake_gpu import FakeGpuSource
from tests.unit.test_cycle import Bench, FakeSite

INSTANCES = {
    gpu: tuple(MigInstance(f"MIG-{gpu[4:12]}-{gi}", gi, 0) for gi in (1, 2)) for gpu in (FakeGpuSource().gpus[3].uuid,)
}


def swept(**gpu: Any) -> NodeFacts:
    """Eight healthy GPUs, of which number 3 is as said."""
    source = FakeGpuSource()
    source.set(3, **gpu)
    return source.sample()


U = FakeGpuSource().gpus[3].uuid
BETWEEN = Lending((U,))


def owner(scheduler: str = "slurm", unit: str = U, gpu: str = U) -> dict[str, Owner]:
    return {unit: Owner(scheduler, job="7", grant="g", units=(unit,), gpus=(gpu,))}


@pytest.mark.parametrize(
    "gpu, retired, owners, expected",
    [
        ({}, {U: {}}, {}, BETWEEN),
        ({}, {}, {}, Lending()),
        ({}, {U: {}}, owner(), Lending()),
        ({}, {U: {}}, owner("cleaning"), Lending()),
        ({}, {U: {}}, owner("unreadable"), Lending()),
        ({}, {U: {}}, owner("hold"), BETWEEN),
        ({}, {U: {}}, owner("maintenance"), BETWEEN),
        ({}, {U: {}}, owner(unit=f"{U}@1"), Lending()),
        ({}, {U: {}}, owner(unit="GPU-other", gpu="GPU-other"), BETWEEN),
        ({"processes": (Process(1),)}, {U: {}}, {}, Lending()),
        ({"processes_known": None}, {U: {}}, {}, Lending()),
        ({"error": 16, "processes_known": None, "persistence": None}, {U: {}}, {}, BETWEEN),
        ({"error": 15, "processes_known": None, "persistence": None}, {U: {}}, owner(), Lending()),
    ],
)
def test_nvml_is_let_go_while_a_gpu_is_retired_and_idle(
    gpu: dict[str, Any], retired: dict[str, Any], owners: dict[str, Owner], expected: Lending
) -> None:
    assert lending(swept(**gpu), retired, owners, {}) == expected
    assert expected.between == bool(expected.gpus)


def test_of_a_gpu_in_mig_mode_each_instance_has_to_be_retired_and_free() -> None:
    one, two = (instance.uuid for instance in INSTANCES[U])
    facts = swept(mig_enabled=True, mig=INSTANCES[U])
    assert lending(facts, {one: {}}, {}, INSTANCES) == Lending()
    assert lending(facts, {one: {}, two: {}}, {}, INSTANCES) == BETWEEN
    assert lending(facts, {one: {}, two: {}}, owner(unit=two), INSTANCES) == Lending()
    assert lending(facts, {U: {}}, {}, {U: ()}) == BETWEEN


def test_a_sweep_that_was_cut_short_says_nothing() -> None:
    source = FakeGpuSource()
    source.hang(5)
    assert lending(source.sample(), {U: {}}, {}, {}) == Lending()


@pytest.mark.parametrize("persistence", [False, None])
def test_gpus_without_persistence_mode_would_be_initialised_at_each_sweep(persistence: bool | None) -> None:
    source = FakeGpuSource()
    source.set(6, persistence=persistence)
    found = lending(source.sample(), {U: {}}, {}, {})
    assert found.gpus == (U,) and "GPU 6" in found.obstacle and not found.between


def test_without_a_kernel_log_nobody_would_see_xids() -> None:
    found = lending(swept(), {U: {}}, {}, {}, has_kernel_log=False)
    assert "kernel log" in found.obstacle and not found.between


# ---- between two sweeps --------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    tmp_path.chmod(0o755)
    made = Bench(tmp_path)
    made.run()
    return made


def test_the_cycle_in_which_a_gpu_is_retired_ends_with_nvml_closed(bench: Bench) -> None:
    assert bench.source.open
    bench.source.lose(2)
    bench.run()
    assert list(bench.store.retired()) == [bench.uuid(2)]
    assert (bench.source.open, bench.source.lent) == (False, True)
    bench.source.heal()
    bench.run(4)
    assert bench.store.retired() == {}
    assert (bench.source.open, bench.source.lent) == (True, False)
    assert [kind for kind in bench.log.kinds() if kind.startswith("driver")] == ["driver_lent", "driver_kept"]


# ---- when told to --------------------------------------------------------------------------------------------------


def ask(bench: Bench, seconds: float = 100.0, request: str = "r1") -> None:
    assert events.append(bench.state, RELEASE_DRIVER, seconds=f"{seconds:g}", by="ada", request=request)


def released(bench: Bench) -> Any:
    assert bench.cycle.snapshot is not None
    return bench.cycle.snapshot.released


def states(bench: Bench) -> list[str]:
    return [unit.state for unit in read_verdict(bench.state).units]


def test_nothing_is_looked_at_until_the_time_is_over(bench: Bench) -> None:
    bench.source.set(1, remapping_failed=True)
    bench.run(2)
    before = read_verdict(bench.state)
    ask(bench, 25)
    bench.run()
    samples = bench.source.samples
    assert (released(bench).by, released(bench).request, released(bench).still_open) == ("ada", "r1", 0)
    assert bench.cycle.due == bench.clock.now + 25
    assert not bench.source.open and "the driver is released" in bench.cycle.summary()
    bench.run(2)
    after = read_verdict(bench.state)
    assert bench.source.samples == samples and not bench.source.open
    assert after.monotonic == bench.clock.now == before.monotonic + 30
    assert [(u.unit, u.state, u.why, u.links, u.memory) for u in after.units] == [
        (u.unit, u.state, u.why, u.links, u.memory) for u in before.units
    ]
    bench.run()
    assert bench.source.samples == samples + 1
    assert released(bench) is None and bench.cycle.due == inf
    assert [entry.after for entry in bench.history.of("agent")] == ["driver released", "driver taken back"]


def test_it_is_taken_back_earlier_and_asked_for_longer(bench: Bench) -> None:
    ask(bench, 10)
    bench.run()
    ask(bench, 1e9, "r2")
    bench.run()
    assert released(bench).until == bench.clock.now + LONGEST and released(bench).request == "r2"
    ask(bench, 0)
    bench.run()
    assert released(bench) is None and bench.source.open
    ask(bench, 0)
    bench.run()
    assert bench.log.kinds().count("driver_taken_back") == 1


def test_what_was_asked_of_an_agent_that_is_gone_counts_no_more(bench: Bench) -> None:
    ask(bench)
    bench.cycle = bench.new_cycle()
    bench.run()
    assert released(bench) is None and bench.source.open


def test_a_new_configuration_takes_nothing_back(bench: Bench) -> None:
    ask(bench)
    bench.run()
    bench.cycle = bench.cycle.successor(bench.config, bench.cycle.ports)
    bench.run()
    assert released(bench) is not None and not bench.source.open and bench.cycle.is_out
    assert states(bench) == ["OK"] * 4


def test_processes_that_cannot_be_ended_are_told(bench: Bench) -> None:
    bench.source.stuck = 1
    ask(bench)
    bench.run()
    assert released(bench).still_open == 1
    document = published(bench.cycle.snapshot, {})  # type: ignore[arg-type]
    assert document["driver_released"]["still_open"] == 1


def test_checks_of_the_sites_rest_and_are_waited_for(bench: Bench) -> None:
    site = FakeSite()
    bench.cycle._surroundings.site = site  # type: ignore[assignment]
    site.running = 1
    ask(bench)
    bench.run()
    assert released(bench).still_open == 1 and bench.cycle.due < bench.clock.now + 1
    site.running = 0
    bench.run()
    assert released(bench).still_open == 0 and bench.cycle.due > bench.clock.now + 10
    ask(bench, 0)
    bench.run()
    assert site.resting == [True, True, False]


def test_an_xid_of_the_kernels_counts_at_once_and_only_on_its_gpu(bench: Bench) -> None:
    ask(bench)
    bench.run()
    bench.source.xid(2, 79, source="kernel")
    bench.source.xid(1, 31, source="kernel")
    bench.run()
    assert states(bench) == ["OK", "OK", "FAILED", "OK"]
    assert list(bench.store.retired()) == [bench.uuid(2)]
    assert "XID 31" in read_verdict(bench.state).units[1].why
    bench.run()
    assert read_verdict(bench.state).units[1].why == "", "told in its own cycle"
    assert states(bench) == ["OK", "OK", "FAILED", "OK"]
    bench.source.xid(0, 79, uuid="", bus_id="0000:ff:00.0")
    bench.run()
    assert "never told its UUID" in read_verdict(bench.state).node_why
    ask(bench, 0)
    bench.run(20)
    assert list(bench.store.retired()) == [bench.uuid(2)], "the latch stands until the GPU is initialised anew"
    bench.source.set(2, energy=1.0)
    bench.run(4)
    assert bench.store.retired() == {}


def test_cycles_without_a_look_are_no_clean_ones(bench: Bench) -> None:
    bench.source.lose(2)
    bench.run()
    bench.source.heal()
    bench.run(1)
    ask(bench)
    bench.run(9)
    assert states(bench)[2] == "FAILED" and list(bench.store.retired()) == [bench.uuid(2)]
    ask(bench, 0)
    bench.run(1)
    assert states(bench)[2] == "FAILED"
    bench.run(1)
    assert states(bench)[2] == "OK"


def test_an_agent_that_has_looked_once_returns_nothing_meanwhile(bench: Bench) -> None:
    bench.source.lose(2)
    bench.run()
    bench.source.heal()
    bench.run(1)
    bench.cycle = bench.new_cycle()
    bench.run(1)
    assert states(bench)[2] == "OK" and bench.store.retired()
    ask(bench)
    bench.run(9)
    assert bench.store.retired()


def test_a_switch_that_fails_meanwhile_fails_the_node_at_once_and_stays_failed(bench: Bench) -> None:
    ask(bench)
    bench.run()
    text = "nvidia-nvswitch0: SXid (PCI:0000:c4:00.0): 22003, Fatal, Minion Halt"
    bench.source.xid(0, 22003, kind="sxid", uuid="", bus_id="0000:c4:00.0", source="kernel", text=text)
    assert bench.cycle.witnessed(), "it does not wait for the next turn"
    bench.run(2)
    verdict = bench.cycle.snapshot.verdict
    assert (verdict.node_state, [one.check for one in verdict.node_findings]) == ("FAILED", ["sxid"])
    assert states(bench) == ["OK"] * 4
    ask(bench, 0)
    bench.run(2)
    assert bench.cycle.snapshot.verdict.node_state == "FAILED"


def test_unknown_stays_unknown(bench: Bench) -> None:
    bench.source.hang()
    bench.run(5)
    assert states(bench) == ["UNKNOWN"] * 4
    why = read_verdict(bench.state).node_why
    bench.source.heal()
    ask(bench)
    bench.run(2)
    assert states(bench) == ["UNKNOWN"] * 4 and read_verdict(bench.state).node_why == why


def test_what_an_administrator_restores_stays_restored(bench: Bench) -> None:
    bench.source.xid(0, 79)
    bench.run()
    ask(bench)
    bench.run()
    bench.cycle.ports.actions.restore(bench.uuid(0))
    events.append(bench.state, RESTORED_BY_HAND, units=bench.uuid(0))
    bench.run(2)
    assert bench.store.retired() == {} and states(bench) == ["OK"] * 4


def test_units_between_two_jobs_wait(bench: Bench) -> None:
    ask(bench)
    bench.run()
    with bench.store.exclusive():
        bench.store.claim(owner("cleaning", bench.uuid(1), bench.uuid(1))[bench.uuid(1)])
    looks = bench.source.looks
    bench.cycle.clean()
    bench.run()
    assert (bench.source.looks, bench.cycle.clean_at) == (looks, inf)
    assert list(bench.store.owners()) == [bench.uuid(1)]
    ask(bench, 0)
    bench.run()
    assert bench.store.owners() == {}


def test_a_command_has_a_cycle_out_of_turn_and_an_epilog_has_not(bench: Bench) -> None:
    wake(open_attendant(bench.state))
    bench.cycle.clean()
    assert bench.cycle.due == inf
    wake(open_attendant(bench.state), EVENTS)
    wake(open_attendant(bench.state))
    bench.cycle.clean()
    assert bench.cycle.due == -inf
    bench.run()
    assert bench.cycle.due == inf


def test_no_gpu_has_values_and_none_is_down(bench: Bench) -> None:
    ask(bench)
    bench.run()
    text = render(bench.cycle.snapshot, {}).decode()
    assert "gpu_nodeagent_driver_released 1.0" in text
    assert "gpu_nodeagent_gpu_up{" not in text and "gpu_nodeagent_gpu_power_watts{" not in text
    assert f'gpu_nodeagent_gpu_health{{uuid="{bench.uuid(0)}",verdict="OK"}} 1.0' in text
    assert f'driver="{bench.source.node["driver"]}"' in text
    assert b"The driver is released" in render_page(bench.cycle.snapshot, {}, bench.clock.now)
    ask(bench, 0)
    bench.run()
    text = render(bench.cycle.snapshot, {}).decode()
    assert "gpu_nodeagent_driver_released 0.0" in text and "gpu_nodeagent_gpu_up{" in text


def test_slurmd_is_not_asked_for_its_gpus_meanwhile(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """`slurmd -G` opens NVML where gres.conf has AutoDetect."""
    asked = []

    class Slurm:
        def __init__(self, *_: object) -> None: ...
        def settings(self) -> dict[str, str]:
            return {}

        def typed_gres(self) -> bool:
            return False

        def gres(self) -> dict[int, Gres]:
            asked.append("slurmd -G")
            return {}

    monkeypatch.setattr(compiling, "SlurmScheduler", Slurm)
    found = Loaded(Config(scheduler=SchedulerSettings(kind="slurm")), bench.directory / "config.yaml", ())
    _, problems = compiling.compile_hook_conf(found, may_open_driver=False)
    assert asked == [] and any("released" in problem for problem in problems)
    compiling.compile_hook_conf(found)
    assert asked == ["slurmd -G"]
    bench.cycle.ports.hook_conf.complete = False
    monkeypatch.setattr(type(bench.cycle.ports.hook_conf), "__call__", lambda _: asked.append("again"))
    ask(bench, 900)
    bench.run(20)
    assert "again" not in asked


def test_the_command_says_what_keeps_the_driver_and_what_is_missed(capsys: pytest.CaptureFixture[str]) -> None:
    said = {"until": "2026-01-02T03:04:05Z", "still_open": 0, "kernel_log": True}
    assert release_driver_command._report(said) == 0
    assert "until 2026-01-02T03:04:05Z" in capsys.readouterr().out
    assert release_driver_command._report({**said, "still_open": 2, "kernel_log": False}) == 1
    text = capsys.readouterr().err
    assert "2 processes" in text and "state D" in text and "XIDs of this time will be missed" in text


def test_what_is_not_answered_in_full_is_told_in_the_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.source.stuck = 1
    ask(bench, request="mine")
    bench.run()
    monkeypatch.setattr(release_driver_command, "_SLACK", -1e9)
    asked = release_driver_command.Asked(bench.state, bench.config, 0.0, "mine")
    assert asked.wait(asked.is_free, asked.is_heard)["driver_released"]["still_open"] == 1
    other = release_driver_command.Asked(bench.state, bench.config, 0.0, "another")
    with pytest.raises(AgentSilent):
        other.wait(other.is_free, other.is_heard)
