"""The stand-in library, on which all other tests rely, against the one that is here."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from tests.hardware.place import Place, ask
from tests.simnvml import MODELS, Scenario, fake_roots

NEWER = frozenset(
    {
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetGpuFabricInfoV",
        "nvmlDeviceGetGspFirmwareVersion",
        "nvmlDeviceGetMarginTemperature",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetNumaNodeId",
        "nvmlDeviceGetSramEccErrorStatus",
        "nvmlDeviceGetTemperatureV",
    }
)
"""Calls that a driver still in use may lack. For each there is another way, or it is no value then."""
NOT_SUPPORTED = 3
VERSION_MISMATCH = 25
INSUFFICIENT_SIZE = 7

Answers = dict[str, Any]
StandIn = Callable[[str], "dict[str, str]"]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """The environment of a process for which one GPU of that model is played."""

    def environment(model: str) -> dict[str, str]:
        home = tmp_path_factory.mktemp("stand-in")
        scenario = Scenario(home / "scenario", gpus=1, model=model)
        fake_roots(home / "roots", scenario)
        return {**os.environ, **scenario.env, "ROOTS": str(home / "roots")}

    return environment


@pytest.fixture(scope="module")
def here_abi(here: Place, facts: dict[str, Any]) -> Answers:
    """What the library here says when it is called without the binding."""
    found: Answers = ask("abi")
    facts["abi"] = found
    return found


@pytest.fixture(scope="module")
def there_abi(stand_in: StandIn) -> Answers:
    """What the stand-in says."""
    found: Answers = ask("abi", env=stand_in("H100-80GB"))
    return found


def test_the_stand_in_exports_what_its_sources_say(there_abi: Answers) -> None:
    assert there_abi["missing"] == []


def test_what_the_stand_in_exports_is_here(here_abi: Answers) -> None:
    assert set(here_abi["missing"]) - NEWER == set()


def test_structures_are_as_large(here_abi: Answers, there_abi: Answers) -> None:
    for name, here in here_abi["versions"].items():
        there = there_abi["versions"][name]
        if here is None:
            continue
        assert here["right"] in (0, NOT_SUPPORTED), name
        assert (here["size"], here["wrong"], there["wrong"]) == (there["size"], VERSION_MISMATCH, VERSION_MISMATCH), (
            name
        )


def test_a_list_without_room_says_so(here_abi: Answers) -> None:
    for code, entries in (answer for gpu in here_abi["lists"] for answer in gpu):
        assert code == (INSUFFICIENT_SIZE if entries else 0) or (code, entries) == (NOT_SUPPORTED, 0)


def test_the_same_calls_are_not_supported(
    here: Place, here_abi: Answers, stand_in: StandIn, facts: dict[str, Any]
) -> None:
    played = {model.name: key for key, model in MODELS.items()}
    models = [played[name] for name in here_abi["names"] if name in played]
    facts["compared_with"] = models[:1]
    if not models:
        return  # a model that nobody plays: that it is so is in the facts
    env = stand_in(models[0])
    there = _codes(ask("sweeps", f"{env['ROOTS']}/proc", f"{env['ROOTS']}/sys", "2", env=env))
    ours = _codes(ask("sweeps", here.roots.proc, here.roots.sys, "2"))
    both = sorted(set(ours) & set(there))
    facts["differs_from_stand_in"] = {
        name: {"here": sorted(ours[name]), "stand-in": sorted(there[name])}
        for name in both
        if ours[name] != there[name]
    }
    assert {name for name in both if (NOT_SUPPORTED in ours[name]) != (NOT_SUPPORTED in there[name])} == set()


def _codes(sweeps: list[list[tuple[str, int, float]]]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for name, code, _ in (call for sweep in sweeps for call in sweep):
        found[name].add(code)
    return dict(found)
