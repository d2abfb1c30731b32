"""The package as a file: what is in it, that it is made the same twice, that the unit and the example are sound."""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from nodeagent.config.load import flatten, load
from nodeagent.config.model import Config
from nodeagent.version import VERSION
from tests.packaging.conftest import ROOT, build, require

EXPOSURE = 50  # tenths, of `systemd-analyze security`
OLDEST_PYTHON = (3, 9)
LIBRARY, HOOKS = "/usr/lib/gpu-nodeagent", "/usr/libexec/gpu-nodeagent"
SINGLE = {
    "/etc/gpu-nodeagent": "drwxr-xr-x",
    "/etc/gpu-nodeagent/conf.d": "drwxr-xr-x",
    "/etc/gpu-nodeagent/conf.d/README": "-rw-r--r--",
    "/etc/gpu-nodeagent/config.yaml": "-rw-r--r--",
    "/etc/profile.d/gpu-nodeagent.csh": "-rw-r--r--",
    "/etc/profile.d/gpu-nodeagent.sh": "-rw-r--r--",
    "/run/gpu-nodeagent": "drwxr-xr-x",
    "/usr/bin/gpu-nodeagent": "-rwxr-xr-x",
    "/usr/lib/systemd/system/gpu-nodeagent.service": "-rw-r--r--",
    "/usr/lib/tmpfiles.d/gpu-nodeagent.conf": "-rw-r--r--",
    "/usr/share/bash-completion/completions/gpu-nodeagent": "-rw-r--r--",
    "/usr/share/doc/gpu-nodeagent": "drwxr-xr-x",
    "/var/lib/gpu-nodeagent": "drwxr-xr-x",
}
HOOK_FILES = (
    *("prolog/slurm", "prolog/slurm-task", "epilog/slurm"),
    *("prolog/sge", "prolog/sge-shepherd", "prolog/sge-login", "epilog/sge"),
)

pytestmark = pytest.mark.timeout(300)


class Entry(NamedTuple):
    """One file of the package."""

    mode: str
    owner: str
    flags: str
    target: str


def query(package: Path, form: str) -> list[str]:
    argv = ["rpm", "-qp", "--nosignature", "--queryformat", form, str(package)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="session")
def files(package: Path) -> dict[str, Entry]:
    form = "[%{FILENAMES}|%{FILEMODES:perms}|%{FILEUSERNAME}:%{FILEGROUPNAME}|%{FILEFLAGS:fflags}|%{FILELINKTOS}\n]"
    rows = (line.split("|") for line in query(package, form))
    return {name: Entry(*rest) for name, *rest in rows}


@pytest.fixture(scope="session")
def content(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's files, unpacked."""
    place = tmp_path_factory.mktemp("content")
    with subprocess.Popen(["rpm2cpio", str(package)], stdout=subprocess.PIPE) as archive:
        argv = ["cpio", "--quiet", "-idm", "--no-absolute-filenames"]
        subprocess.run(argv, stdin=archive.stdout, cwd=place, check=True)
    return place


def test_every_file_is_in_its_expected_place(files: dict[str, Entry]) -> None:
    documents = "/usr/share/doc/gpu-nodeagent/"
    elsewhere = {name for name in files if not name.startswith((LIBRARY, HOOKS, documents))}
    assert elsewhere | {documents.rstrip("/")} == set(SINGLE)
    assert {name for name in files if name.startswith(f"{HOOKS}/")} == {
        *(f"{HOOKS}/{name}" for name in ("prolog", "epilog", "nodeagent", "sge-sensor")),
        *(f"{HOOKS}/{name}" for name in HOOK_FILES),
    }
    assert not [name for name in files if name.endswith((".pyc", ".so", "__pycache__"))]


def test_owners_modes_and_links(files: dict[str, Entry]) -> None:
    assert {entry.owner for entry in files.values()} == {"root:root"}
    for name, mode in SINGLE.items():
        assert files[name].mode == mode, name
    for name in HOOK_FILES:
        assert files[f"{HOOKS}/{name}"].mode == "-rwxr-xr-x", name
    assert files[f"{HOOKS}/nodeagent"].target == "../../lib/gpu-nodeagent/nodeagent"
    assert {files[name].mode for name in files if name.startswith(f"{LIBRARY}/")} == {"drwxr-xr-x", "-rw-r--r--"}
    assert files["/etc/gpu-nodeagent/config.yaml"].flags == "cn"  # configuration, noreplace
    assert files["/run/gpu-nodeagent"].flags == "g"  # tmpfiles.d makes it


def test_it_is_for_every_architecture_and_names_what_it_needs(package: Path) -> None:
    assert package.name == f"gpu-nodeagent-{VERSION}-1.noarch.rpm"
    required = set(query(package, "[%{REQUIRENAME} %{REQUIREFLAGS:depflags} %{REQUIREVERSION}\n]"))
    assert {"python3 >= 3.9", "python3-systemd  ", "systemd  ", "/usr/bin/python3  "} <= required
    assert not [name for name in required if name.startswith(("/usr/bin/env", "python(abi)", "libc.so"))]


def test_the_library_is_what_the_checkout_has(content: Path, source: Path) -> None:
    here = {path.relative_to(source / "nodeagent") for path in (source / "nodeagent").rglob("*") if path.is_file()}
    library = content / LIBRARY[1:] / "nodeagent"
    assert {path.relative_to(library) for path in library.rglob("*") if path.is_file()} == here
    for name in HOOK_FILES:
        assert (content / HOOKS[1:] / name).read_bytes() == (source / name).read_bytes()
        assert (content / HOOKS[1:] / name).read_bytes().startswith(b"#!/usr/bin/python3 -IS\n")


def test_modules_of_others_are_those_that_are_pinned(package: Path, content: Path) -> None:
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "rpm" / "requirements.txt").read_text(), re.MULTILINE))
    provided = query(package, "[%{PROVIDENAME} %{PROVIDEVERSION}\n]")
    bundled = dict(re.findall(r"bundled\(python3dist\((.*?)\)\) (\S+)", "\n".join(provided)))
    assert bundled == {name.lower(): version for name, version in pins.items()}
    vendor = content / LIBRARY[1:] / "vendor"
    for metadata in vendor.glob("*.dist-info/METADATA"):
        floor = re.search(r"^Requires-Python: >=3\.(\d+)", metadata.read_text(), re.MULTILINE)
        assert floor is None or int(floor[1]) <= OLDEST_PYTHON[1], metadata
    assert {path.name for path in vendor.iterdir() if not path.name.endswith(".dist-info")} == {
        *("prometheus_client", "pynvml.py", "structlog", "typing_extensions.py", "yaml")
    }


def test_every_module_is_python_3_9(content: Path) -> None:
    for module in sorted((content / LIBRARY[1:]).rglob("*.py")):
        ast.parse(module.read_bytes(), str(module), feature_version=OLDEST_PYTHON)


def test_nothing_names_the_place_where_it_was_built(content: Path, source: Path) -> None:
    for path in content.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            assert str(source).encode() not in data, path
            assert b"gpu-nodeagent-rpm." not in data, path


def test_the_same_source_gives_the_same_file(package: Path, tmp_path: Path, source: Path) -> None:
    elsewhere = shutil.copytree(source, tmp_path / "elsewhere")
    again = build(elsewhere, tmp_path / "out", TZ="Asia/Tokyo", LC_ALL="C", USER="somebody")
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(package.read_bytes()).digest()


def test_rpmlint_finds_nothing_new(package: Path) -> None:
    require("rpmlint")
    argv = ["rpmlint", "--config", str(ROOT / "rpm" / "rpmlint.toml"), str(ROOT / "rpm" / "gpu-nodeagent.spec")]
    done = subprocess.run([*argv, str(package)], capture_output=True, text=True, check=False)
    assert " 0 errors, 0 warnings" in done.stdout, done.stdout + done.stderr


def test_the_spec_stays_small() -> None:
    assert len((ROOT / "rpm" / "gpu-nodeagent.spec").read_text().splitlines()) < 150


def test_the_unit_is_confined() -> None:
    require("systemd-analyze")
    unit = ROOT / "systemd" / "gpu-nodeagent.service"
    argv = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", str(unit)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


def test_the_example_shows_every_setting_with_its_default(tmp_path: Path) -> None:
    text = (ROOT / "rpm" / "config.yaml").read_text()
    assert [line for line in text.splitlines() if line and not line.startswith("#")] == []
    tmp_path.chmod(0o755)
    plain = tmp_path / "config.yaml"
    plain.write_text(re.sub(r"^#( *([a-z_]+:|# ).*)$", r"\1", text, flags=re.MULTILINE))
    plain.chmod(0o644)
    shown, defaults = dict(flatten(load(plain).config)), dict(flatten(Config()))
    only_examples = {"node_name": "node1", "health.expected_gpus": 8}
    assert shown == {**defaults, **only_examples}
    named = set(re.findall(r"([a-z_]+):", plain.read_text()))
    left_out = {key for key in defaults if not key.startswith("roots.") and key.rpartition(".")[2] not in named}
    assert not left_out
