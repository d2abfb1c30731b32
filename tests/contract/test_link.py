"""Linked hooks: the same as those that search for their modules, without the search."""

from __future__ import annotations

import marshal
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.sge_files import SgeJob
from tests.support import LaidOutNode, uuid

ROOT = Path(__file__).resolve().parents[2]
HOOK_PYTHON = "/usr/bin/python3"
SLURM = {"SLURM_JOB_ID": "12", "SLURM_JOB_GPUS": "0-1", "CUDA_VISIBLE_DEVICES": "0,1", "SLURM_JOB_UID": "1000"}


def lay_out(directory: Path) -> Path:
    """Copy the library and its stubs, and link it."""
    for name in ("nodeagent", "prolog", "epilog"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([HOOK_PYTHON, "-IS", str(directory / "nodeagent/link.py")], check=True, timeout=30)
    return directory


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linked library from which everything that was linked is gone: only the linked files can serve."""
    place = lay_out(tmp_path_factory.mktemp("linked"))
    for family in linked_files(place):
        _, parts = marshal.loads(family.read_bytes())
        assert parts["library"] == str(place)
        at_need = [(name, is_package, code) for name, (is_package, code) in parts["at_need"].items()]
        for name, is_package, _ in (*parts["modules"], *at_need):
            path = place / name.replace(".", "/")
            (path / "__init__.py" if is_package else path.with_suffix(".py")).unlink(missing_ok=True)
    return place


def linked_files(place: Path) -> list[Path]:
    return sorted((place / "nodeagent/__pycache__").glob("*.linked"))


def run(place: Path, stub: str, node: LaidOutNode, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    argv = [str(place / stub), "--config", str(node.config)]
    return subprocess.run(argv, env=dict(environ), capture_output=True, text=True, timeout=20, check=False)


def story(place: Path, directory: Path) -> list[object]:
    """Return what all five hooks say and do for one job on each scheduler."""
    told: list[object] = []
    for kind in ("slurm", "sge"):
        (directory / kind).mkdir(parents=True)
        node = LaidOutNode(directory / kind, kind)
        job = SgeJob(directory / "spool", "12", gpus=2)
        environ = SLURM if kind == "slurm" else job.environ
        for stub in (
            ("prolog/slurm", "prolog/slurm-task", "epilog/slurm")
            if kind == "slurm"
            else (
                "prolog/sge",
                "epilog/sge",
            )
        ):
            done = run(place, stub, node, environ)
            told += [stub, done.returncode, done.stdout, done.stderr, node.held()]
        if kind == "sge":
            told.append(job.exported())
    return told


def test_each_family_is_linked_for_the_interpreter_that_runs_hooks(library: Path) -> None:
    said = subprocess.run(
        [HOOK_PYTHON, "-c", "import sys; print(sys.implementation.cache_tag)"],
        capture_output=True,
        text=True,
        check=True,
    )
    tag = said.stdout.strip()
    assert [path.name for path in linked_files(library)] == [f"sge.{tag}.linked", f"slurm.{tag}.linked"]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in linked_files(library))


def test_linked_hooks_do_what_the_others_do(library: Path, tmp_path: Path) -> None:
    linked = story(library, tmp_path / "a")
    assert linked == story(ROOT, tmp_path / "b")
    assert {0: "12", 1: "12"} in linked


def test_what_is_needed_seldom_is_still_found(library: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
    script.chmod(0o755)
    node = LaidOutNode(tmp_path, "slurm")
    node.compile(**{"scheduler.slurm.bin_dir": str(tmp_path / "bin")})
    with node.store.exclusive():
        node.store.retire(uuid(1), [("reason", "XID 79")])
    assert run(library, "prolog/slurm", node, SLURM).returncode == 0
    assert (tmp_path / "said").read_text() == "requeue 12\n"


def test_what_some_runs_need_is_linked_too(library: Path, tmp_path: Path) -> None:
    node = LaidOutNode(tmp_path, "sge", settings="hooks: {wait_for_units: 0}\nisolation: device-files\n")
    job = SgeJob(tmp_path / "spool", "12", gpus=2)
    assert run(library, "prolog/sge", node, job.environ).returncode == 99
    assert "\tisolation_failed\t" in (node.state_dir / "events").read_text(), "it was loaded, and is none for this node"
    node.hold([0, 1, 2])
    assert run(library, "prolog/sge", node, job.environ).returncode == 99
    assert "1 of those are free" in (node.state_dir / "events").read_text(), "other jobs' ends were looked for"


@pytest.mark.parametrize("damage", ["another interpreter", "cut short"])
def test_a_file_of_another_interpreter_is_left_alone_and_a_damaged_one_starts_the_job(
    tmp_path: Path, damage: str
) -> None:
    place = lay_out(tmp_path / "library")
    for path in linked_files(place):
        if damage == "cut short":
            path.write_bytes(path.read_bytes()[:1000])
        else:
            path.rename(path.with_name(f"{path.name.split('.')[0]}.cpython-999.linked"))
    node = LaidOutNode(tmp_path, "slurm")
    done = run(place, "prolog/slurm", node, SLURM)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert bool(node.held()) == (damage == "another interpreter")


def test_linking_again_replaces_the_file_as_a_whole(tmp_path: Path) -> None:
    place = lay_out(tmp_path)
    before = {path: path.stat().st_ino for path in linked_files(place)}
    subprocess.run([HOOK_PYTHON, "-IS", str(place / "nodeagent/link.py")], check=True, timeout=30)
    assert {path: path.stat().st_ino for path in linked_files(place)}.keys() == before.keys()
    assert all(path.stat().st_ino != inode for path, inode in before.items())
