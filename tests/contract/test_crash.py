"""Hooks struck at each of their system calls: killed there, or refused with an error. What is left must be in order.

Each hook runs as a whole process under strace. A first run says which calls it makes; then it is run once for every
call, on a node put back to how it was. strace counts the calls of one name, so a call is struck by its name and number.

Kills begin with the interpreter's own start. Refusals begin with the library's import: an interpreter that cannot be
started answers with a status of its own, whatever it was to run. A call that only looks is refused as the kernel may
refuse it (EIO, EINTR); one that changes something also for want of space.

Until a hook reads its first file of the node, it cannot know what is there: these calls are struck once, the
interpreter's in one hook and the library's import in each hook, not again on every node that the hooks are tried on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.errors import NodeAgentError
from tests.contract.crash_scene import HOOKS, Scene
from tests.contract.crash_trace import MEMORY, Call, from_first_naming
from tests.integration.support import require

SCENES = [
    *((stub, "") for stub in HOOKS),
    *((stub, "first ever") for stub in ("prolog/slurm", "prolog/sge")),
    ("epilog/slurm", "with an agent"),  # Grid Engine's differs from it by nothing that has to do with the agent
]
CHANGES = {"openat", "write", "mkdirat", "fchmodat", "fchmod", "renameat", "unlinkat", "flock", "ftruncate"}
LOOKS = {"read", "newfstatat", "getdents64", "fcntl", "lseek", "close"}
RETRIES = 2
"""How often a call is struck again, where a run made other calls and another one was struck, or none.

Files come in the kernel's order, and an epilog opens some for each process that it meets, strace's own among them.
"""
ERRORS = {**dict.fromkeys(LOOKS, ("EIO", "EINTR")), **dict.fromkeys(CHANGES, ("EIO", "ENOSPC", "EINTR"))}

every_scene = pytest.mark.parametrize(
    ("stub", "how"), SCENES, ids=[f"{stub}{how and ', '}{how}" for stub, how in SCENES]
)


@pytest.fixture
def scene(tmp_path: Path, stub: str, how: str) -> Scene:
    require("strace")
    return Scene(tmp_path, stub, how == "first ever", how == "with an agent")


def recorded(scene: Scene) -> list[Call]:
    scene.hook.calls()  # a first run in a new checkout leaves .pyc files, which later runs then read
    scene.restore()
    calls = scene.hook.calls()
    scene.restore()
    return calls


def own_calls(scene: Scene, calls: list[Call]) -> list[Call]:
    """Return the calls from the first on that names the node's own files: its configuration, to begin with."""
    return from_first_naming(calls, str(scene.node.config.parent))


def first_to_strike(scene: Scene, calls: list[Call]) -> list[Call]:
    """Return the calls from the library's import on; on another node than the usual, those that can see that it is."""
    return own_calls(scene, calls) if scene.unusual else from_first_naming(calls, "/nodeagent/")


def still_made(scene: Scene, call: Call) -> bool:
    """Say whether a run makes that many calls of this name now, on a node that is put back before and after it."""
    scene.restore()
    made = sum(one.name == call.name for one in scene.hook.calls())
    scene.restore()
    return made >= call.nth


def test_the_run_that_is_recorded_is_the_normal_one(tmp_path: Path) -> None:
    require("strace")
    scene = Scene(tmp_path, "prolog/sge")
    calls = recorded(scene)
    names = [call.name for call in own_calls(scene, calls)]
    scene.hook.calls()
    assert {"flock", "mkdirat", "fchmodat", "openat", "fchmod", "write", "renameat", "unlinkat"} <= set(names)
    assert names[-1] == "exit_group"
    assert scene.node.held() == {0: "603", 1: "603", 4: "7"}


@pytest.mark.timeout(300)
@every_scene
def test_killed_at_every_call(scene: Scene) -> None:
    calls = recorded(scene)
    own = set(own_calls(scene, calls))
    struck = unmade = 0
    wrong = []
    interpreters = (scene.stub, "") == SCENES[0] and not scene.unusual
    for call in calls[1:] if interpreters else first_to_strike(scene, calls):
        early = call not in own
        if not early:
            scene.restore()
        ended = scene.hook.killed_before(call)
        for _ in range(RETRIES):
            if ended.killed:
                break
            scene.restore()
            ended = scene.hook.killed_before(call)
        if not ended.killed and (call.name in MEMORY or not still_made(scene, call)):
            unmade += call.name not in MEMORY
            scene.restore()
            continue
        struck += 1
        try:
            assert ended.killed, ended
            if early:
                assert scene.untouched()
            else:
                scene.check_at_once()
                scene.check_afterwards()
        except (AssertionError, NodeAgentError) as error:
            wrong.append(f"KILL at {call}: {error}")
    print(f"{struck} kills, {unmade} calls that no run made again, {len(scene.checked)} states")
    assert unmade <= struck / 50, "another hook was struck than the one that was recorded"
    assert not wrong, "\n".join([f"{len(wrong)} of {struck}", *wrong])


def reads_of_owners(calls: list[Call]) -> set[Call]:
    """Return the calls by which locks' owners are read: from each file's opening to its closing."""
    found = set()
    reading = False
    for call in calls:
        reading = reading or (call.name == "openat" and '/owner", O_RDONLY' in call.text)
        if reading:
            found.add(call)
            reading = call.name != "close"
    return found


def refusals(calls: list[Call], own: set[Call]) -> Iterator[tuple[Call, str]]:
    """Yield what is refused with which error; of the calls that load the library one error each shows all there is."""
    for call in calls:
        errors = ERRORS.get(call.name, ())
        for error in errors if call in own else errors[:1]:
            yield call, error


@pytest.mark.timeout(300)
@every_scene
def test_refused_at_every_file_call(scene: Scene) -> None:
    calls = recorded(scene)
    own, of_owners = set(own_calls(scene, calls)), reads_of_owners(calls)
    struck = 0
    wrong = []
    for call, error in refusals(first_to_strike(scene, calls), own):
        if not scene.untouched():
            scene.restore()
        ended = scene.hook.refused(call, error)
        for _ in range(RETRIES):
            if scene.hook.struck(call):
                break
            scene.restore()
            ended = scene.hook.refused(call, error)
        strayed = not scene.hook.struck(call)
        struck += 1
        try:
            scene.check_at_once(one_grant=False)
            # where another call was struck all the same, it may have been one that reads an owner
            scene.check_refused(ended, call in own, call in of_owners or strayed)
            assert scene.stub.startswith("epilog") or scene.whole(), "part of a grant was left"
            scene.check_afterwards()
        except (AssertionError, NodeAgentError) as wrongly:
            wrong.append(f"{error} at {call}, status {ended.status} {ended.err}: {wrongly}")
    print(f"{struck} refusals, {len(scene.checked)} states")
    assert not wrong, "\n".join([f"{len(wrong)} of {struck}", *wrong])
