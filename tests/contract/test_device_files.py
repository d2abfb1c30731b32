"""Isolation by the device files' owners, on real files: who can open what, whatever users and other hooks do."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.errors import NotIsolated
from nodeagent.isolation import device_files
from nodeagent.isolation.confine import Wish, confine, undo_gone
from nodeagent.isolation.devices import Device
from nodeagent.isolation.record import Confinement
from nodeagent.lock.record import Owner
from tests.clusters.process import open_directory
from tests.contract.isolation_scene import Scene, scene

ALL = (0, 1, 2, 3)
ALICE, BOB = 1000, 1001
_ACL = "system.posix_acl_access"


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory that ordinary users can pass through."""
    with open_directory("gna-device-files-") as directory:
        yield directory


@pytest.fixture
def files(room: Path) -> Iterator[Scene]:
    with scene(room, "device-files") as found:
        yield found


def grant(files: Scene, uid: int, *gpus: int) -> Owner:
    """Lock GPUs and give a user their files, as a hook does."""
    lines = [files.node.units()[gpu] for gpu in gpus]
    units = tuple(line.unit for line in lines)
    owner = Owner("sge", str(uid), grant=f"{uid:x}{''.join(map(str, gpus))}", uid=str(uid), units=units)
    with files.node.store.exclusive():
        files.node.store.claim(owner)
    proc = str(files.params.parents[2])
    assert confine(files.node.state, owner, Wish("device-files", str(files.dev), proc, files.node.units(), lines, 1))
    return owner


def end(files: Scene, owner: Owner) -> None:
    """Let a grant's lock go, and undo what is left of it as the agent does."""
    with files.node.store.exclusive():
        files.node.store.release(lambda held: held.grant == owner.grant)
        for record in files.records():  # its maker is this process, which lives on
            path = files.node.state_dir / "isolation" / record
            path.write_text("".join(line for line in path.open() if not line.startswith("pid")) + "pid=\npid_start=\n")
        undo_gone(files.node.state, files.node.store.owners())


def users(files: Scene) -> list[int]:
    return [os.stat(files.dev / f"nvidia{gpu}").st_uid for gpu in ALL]


def opened(files: Scene, uid: int, *gpus: int) -> list[str]:
    return files.opened(*gpus, prefix=f"setpriv --reuid {uid} --regid {uid} --clear-groups --")


def test_a_job_with_all_gpus_gets_their_files(room: Path) -> None:
    with scene(room, "device-files", gpus=4) as files:
        for gpu in ALL:  # as the jobs before it left them
            os.chmod(files.dev / f"nvidia{gpu}", 0o600)
        assert files.hook("prolog/sge") == 0
        assert opened(files, ALICE, *ALL) == ["opens"] * 4
        assert files.hook("epilog/sge") == 0
        assert opened(files, ALICE, *ALL) == ["EACCES"] * 4


def test_a_list_of_access_that_a_user_left_on_a_file_lets_nobody_in(files: Scene) -> None:
    mine = grant(files, ALICE, 0)
    everybody, none = 0xFFFFFFFF, 0
    entries = ((1, 6, everybody), (2, 6, ALICE), (4, 6, everybody), (0x10, 6, everybody), (0x20, none, everybody))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(files.dev / "nvidia0", _ACL, acl)  # a file's owner may do that: setfacl -m u:alice:rw
    end(files, mine)
    grant(files, BOB, 0)
    assert opened(files, BOB, 0) == ["opens"]
    assert opened(files, ALICE, 0) == ["EACCES"]


def test_two_hooks_at_once_leave_each_its_own_files(files: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, go = os.pipe()
    other = os.fork()  # before the first hook has the flock, of which a child would have a part
    if other == 0:
        try:
            os.read(waiting, 1)
            grant(files, BOB, 1)
            os._exit(0)
        finally:
            os._exit(1)
    chown = os.chown

    def meanwhile(path: str, uid: int, gid: int) -> None:
        """Just before a hook closes GPU 1, which nobody has, another hook gives it to Bob, or waits for its turn."""
        if path.endswith("nvidia1"):
            os.write(go, b"!")
            deadline = time.monotonic() + 0.3
            while time.monotonic() < deadline and not ended(other):
                time.sleep(0.005)
        chown(path, uid, gid)

    monkeypatch.setattr(device_files.os, "chown", meanwhile)
    grant(files, ALICE, 0)
    assert os.waitpid(other, 0)[1] == 0
    assert users(files) == [ALICE, BOB, 0, 0]
    os.close(waiting)
    os.close(go)


def ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def grant_and_exit(files: Scene, uid: int, gpu: int) -> None:
    try:
        grant(files, uid, gpu)
        os._exit(0)
    finally:
        os._exit(1)


def test_a_granted_gpu_without_a_file_is_an_error(files: Scene) -> None:
    record = Confinement("g", "device-files", uid="1000", units=("GPU-1",))
    with pytest.raises(NotIsolated, match="no file"):
        device_files.DeviceFiles().plan(record, 1, [Device(195, 1)])
