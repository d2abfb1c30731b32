"""Completing a grant, killed at each of its system calls: no running job ever loses its lock by that."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from nodeagent.lock.reconcile import gone
from nodeagent.lock.record import Owner
from nodeagent.state.boot import boot_id
from tests.contract.crash_trace import MEMORY, Hook, from_first_naming
from tests.integration.support import require
from tests.support import LaidOutNode, uuid

ROOT = Path(__file__).resolve().parents[2]
EXTEND = """
import sys
sys.path.insert(0, {root!r})
from nodeagent.lock.store import Store
from nodeagent.state.files import Directory
store = Store(Directory({state!r}))
with store.exclusive():
    store.sweep()
    store.extend("grant7", {gpus!r})
"""


def test_killed_at_every_call(tmp_path: Path) -> None:
    require("strace")
    node = LaidOutNode(tmp_path, "slurm", gpus=5)
    node.hold([2], job="7")
    node.hold([4], job="8")
    others = (node.state_dir / "locks" / uuid(4) / "owner").stat()
    units = [uuid(0), uuid(1)]
    script = tmp_path / "extend.py"
    script.write_text(EXTEND.format(root=str(ROOT), state=str(node.state_dir), gpus=dict(zip(units, units))))
    seed = tmp_path / "seed"
    shutil.copytree(node.state_dir / "locks" / uuid(2), seed)
    hook = Hook([sys.executable, "-IS", str(script)], {}, tmp_path / "strace.log")

    def restore() -> None:
        for index in (0, 1, 2):
            shutil.rmtree(node.state_dir / "locks" / uuid(index), ignore_errors=True)
        shutil.copytree(seed, node.state_dir / "locks" / uuid(2))

    hook.calls()
    assert node.held() == {0: "7", 1: "7", 2: "7", 4: "8"}
    restore()
    calls = [call for call in from_first_naming(hook.calls(), str(node.state_dir)) if call.name not in MEMORY]
    assert [call.name for call in calls].count("renameat") == 4, "two units prepared, two older owners replaced"
    left = set()
    for call in calls:
        restore()
        assert hook.killed_before(call).killed, call
        with node.store.exclusive():
            node.store.sweep()
            owners = node.store.owners()
            mine = {unit for unit, owner in owners.items() if owner.job == "7"}
            left.add(len(mine))
            assert all(set(owners[unit].units) <= mine for unit in mine), f"{call}: a unit is named and not locked"
            assert uuid(2) in mine and gone(owners, boot_id("/proc"), lambda _: "") == {}, f"{call}: it would be freed"
            held = node.store.extend("grant7", dict(zip(units, units)))
            assert set(held) == {uuid(2), *units}, f"{call}: it does not go on"
            assert all(set(owner.units) == {uuid(2), *units} for owner in _of(node, "7"))
            assert len(node.store.release(lambda owner: owner.job == "7")) == 3
    assert left == {1, 2, 3}
    assert (node.state_dir / "locks" / uuid(4) / "owner").stat().st_ino == others.st_ino


def _of(node: LaidOutNode, job: str) -> list[Owner]:
    return [owner for owner in node.store.owners().values() if owner.job == job]
