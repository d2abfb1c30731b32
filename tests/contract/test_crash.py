"""Hooks struck at each of their system calls: killed there, or refused with an error. What is left must be in order.

Each hook runs as a whole process under strace. A first run says which calls it makes; then it is run once for every
call, on a node put back to how it was. strace counts the calls of one name, so a call is struck by its name and number.

A hook that is killed in its interpreter's start has not opened anything of the node's, so nothing is to be shown there:
by default the first call struck is the first that names the node's own files (`state_dir` is read from one of them).
With GPU_NODEAGENT_CRASH=full (about a quarter of an hour) it is the first after the library's import began, and the
calls that only look are refused as well.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nodeagent.errors import NodeAgentError
from tests.contract.crash_scene import HOOKS, Scene
from tests.contract.crash_trace import MEMORY, Call, from_first_naming
from tests.integration.support import require

FULL = os.environ.get("GPU_NODEAGENT_CRASH") == "full"
SCENES = [(stub, False) for stub in HOOKS] + [("prolog/slurm", True), ("prolog/sge", True)]
CHANGES = {"openat", "write", "mkdirat", "fchmodat", "fchmod", "renameat", "unlinkat", "flock", "ftruncate"}
LOOKS = {"read", "newfstatat", "getdents64", "fcntl", "lseek", "close"}
ERRORS = ("ENOSPC", "EIO", "EINTR")

every_scene = pytest.mark.parametrize(
    ("stub", "first"), SCENES, ids=[f"{stub}{', first ever' * first}" for stub, first in SCENES]
)


@pytest.fixture
def scene(tmp_path: Path, stub: str, first: bool) -> Scene:
    require("strace")
    return Scene(tmp_path, stub, first)


def own_calls(scene: Scene) -> list[Call]:
    scene.hook.calls()  # a first run in a new checkout leaves .pyc files, which later runs then read
    scene.restore()
    calls = scene.hook.calls()
    return from_first_naming(calls, "/nodeagent/" if FULL else str(scene.node.config.parent))


def test_the_run_that_is_recorded_is_the_normal_one(tmp_path: Path) -> None:
    require("strace")
    scene = Scene(tmp_path, "prolog/sge")
    names = [call.name for call in own_calls(scene)]
    assert {"flock", "mkdirat", "fchmodat", "openat", "fchmod", "write", "renameat", "unlinkat"} <= set(names)
    assert names[-1] == "exit_group"
    assert scene.node.held() == {0: "603", 1: "603", 4: "7"}


@pytest.mark.timeout(1800 if FULL else 120)
@every_scene
def test_killed_at_every_call(scene: Scene) -> None:
    struck = 0
    wrong = []
    for call in own_calls(scene):
        scene.restore()
        ended = scene.hook.killed_before(call)
        if not ended.killed and call.name in MEMORY:
            continue
        struck += 1
        try:
            assert ended.killed, ended
            scene.check_at_once()
            scene.check_afterwards()
        except (AssertionError, NodeAgentError) as error:
            wrong.append(f"KILL at {call}: {error}")
    print(f"{struck} kills, {len(scene.checked)} states")
    assert not wrong, "\n".join([f"{len(wrong)} of {struck}", *wrong])


@pytest.mark.timeout(1800 if FULL else 120)
@every_scene
def test_refused_at_every_file_call(scene: Scene) -> None:
    struck = 0
    wrong = []
    for call in own_calls(scene):
        if call.name not in (CHANGES | LOOKS if FULL else CHANGES):
            continue
        for error in ERRORS:
            scene.restore()
            ended = scene.hook.refused(call, error)
            struck += 1
            try:
                scene.check_at_once(one_grant=False)
                scene.check_refused(call, ended)
                assert scene.stub.startswith("epilog") or scene.whole(), "part of a grant was left"
                scene.check_afterwards()
            except (AssertionError, NodeAgentError) as wrongly:
                wrong.append(f"{error} at {call}, status {ended.status} {ended.err}: {wrongly}")
    print(f"{struck} refusals, {len(scene.checked)} states")
    assert not wrong, "\n".join([f"{len(wrong)} of {struck}", *wrong])
