"""Which module may import which, by the sources: layers point one way, hooks stay lean, each library has a door."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "nodeagent"
STUBS = (
    "prolog/slurm",
    "prolog/slurm-task",
    "prolog/sge",
    "prolog/sge-shepherd",
    "prolog/sge-login",
    "epilog/slurm",
    "epilog/sge",
)
MOST_STUB_LINES = 15

# What each part of the package may import of the others. A part is a package, or a module at the top.
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "clock": set(),
    "version": set(),
    "link": set(),
    "state": {"errors"},
    "lock": {"errors", "state"},
    "isolation": {"errors", "lock", "state"},
    "doctor": {"config", "errors", "isolation"},
    "hook": {"errors", "isolation", "lock", "state"},
    "config": {"errors", "lock", "state"},
    "scheduler": {"config", "errors", "lock", "state"},
    "drivers": {"config", "errors", "scheduler"},
    "discover": {"config", "errors", "gpu", "scheduler", "state"},
    "gpu": {"clock", "config", "state"},
    "external": {"clock", "config", "errors", "gpu", "scheduler", "state"},
    "job": {"clock", "gpu", "lock", "state"},
    "health": {"config", "errors", "gpu", "state"},
    "policy": {"config", "health", "lock", "scheduler", "state"},
    "history": {"errors", "state"},
    "snapshot": {"gpu", "health", "history", "state"},
    "metrics": {"errors", "gpu", "health", "lock", "snapshot", "state"},
    "agent": {
        *("clock", "config", "drivers", "errors", "external", "gpu", "health", "history", "isolation", "job"),
        *("lock", "policy", "report", "scheduler", "snapshot", "state"),
    },
    "report": {"health", "history", "lock", "snapshot", "state"},
    # a replay runs the decider that the agent runs, on a node of values
    "replay": {"agent", "config", "errors", "gpu", "health", "policy", "report", "scheduler"},
    "cli": {
        *("agent", "clock", "config", "discover", "doctor", "drivers", "errors", "gpu", "health", "history", "hook"),
        *("isolation", "lock", "metrics", "policy", "replay", "report", "scheduler", "snapshot", "state", "version"),
    },
}

# Single imports against the table, each with its reason. Nothing is to be added here without one.
EXCEPTIONS = {
    # hook.conf holds what the scheduler was asked, once, when it was compiled
    ("nodeagent.config.compile", "nodeagent.scheduler.registry"),
    ("nodeagent.config.compile", "nodeagent.scheduler.slurm"),
    # an abnormal row of the outcome table runs a scheduler's command: imported there, in the function
    ("nodeagent.hook.slurm", "nodeagent.scheduler.command"),
    ("nodeagent.hook.sge", "nodeagent.scheduler.command"),
    # what a GRES index means must not be said twice: the agent adds to a grant what the hook could not see
    ("nodeagent.agent.completer", "nodeagent.hook.node"),
    ("nodeagent.agent.completer", "nodeagent.hook.slurm"),
    # nor which GRES index is to be held
    ("nodeagent.agent.holder", "nodeagent.hook.node"),
    ("nodeagent.agent.holder", "nodeagent.hook.slurm"),
}

# The only modules that may import it (a trailing dot: everything below that package).
DOORS = {
    "pynvml": {"nodeagent.gpu.nvml"},
    "yaml": {"nodeagent.config.load"},
    "prometheus_client": {"nodeagent.metrics."},
    "structlog": {"nodeagent.agent.journal"},
    "systemd": {"nodeagent.agent.journal", "nodeagent.agent.notify"},
    "elftools": {"nodeagent.drivers."},
    "subprocess": {"nodeagent.scheduler.command", "nodeagent.gpu.probe_worker", "nodeagent.external."},
    "ctypes": {
        "nodeagent.state.processes",
        "nodeagent.gpu.nvml",
        "nodeagent.gpu.worker",
        "nodeagent.isolation.cgroup_v2",
    },
    "argparse": {"nodeagent.cli."},
    "sqlite3": {"nodeagent.history."},
}
THIRD_PARTY = {"pynvml", "yaml", "prometheus_client", "structlog", "systemd", "elftools"}

LEAN_STANDARD = {"os", "sys", "fcntl", "errno", "time"}
# ctypes: bpf(2) has no other door, and cgroup v2 isolation no other way
# _signal: part of the interpreter; `signal` costs 4 ms
LEAN_ON_DEMAND = {"_signal", "syslog", "xml.etree", "ctypes", "nodeagent.scheduler.command"}


@dataclass(frozen=True)
class Import:
    """One import: `target` as a dotted name; `lazy` inside a function, `typing` below TYPE_CHECKING."""

    target: str
    line: int
    lazy: bool
    typing: bool


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name[: -len(".__init__")] if name.endswith(".__init__") else name] = path
    return found


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def walk(node: ast.AST, lazy: bool = False, typing: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, lazy, typing)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0 and child.module is not None, f"line {child.lineno}: a relative import"
            for alias in child.names:
                whole = f"{child.module}.{alias.name}"
                yield Import(whole if whole in modules() else child.module, child.lineno, lazy, typing)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for part in child.body:
                yield from walk(ast.Module([part], []), lazy, True)
            for part in child.orelse:
                yield from walk(ast.Module([part], []), lazy, typing)
        else:
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from walk(child, lazy or inside, typing)


@cache
def imports(module: str) -> tuple[Import, ...]:
    return tuple(walk(tree_of(module)))


def is_ours(name: str) -> bool:
    return name == PACKAGE or name.startswith(f"{PACKAGE}.")


def part_of(module: str) -> str:
    return module.split(".")[1]


def with_parents(module: str) -> set[str]:
    """Return the module and the packages that are imported with it."""
    words = module.split(".")
    return {".".join(words[:end]) for end in range(1, len(words) + 1)}


def lean_modules() -> set[str]:
    """Return all of ours that a hook imports when it starts, and what it imports on demand to confine a job."""
    found: set[str] = set()
    waiting = {name for name in modules() if name.startswith(("nodeagent.hook", "nodeagent.isolation"))}
    while waiting:
        module = waiting.pop()
        found.add(module)
        for one in imports(module):
            if is_ours(one.target) and not one.lazy and not one.typing:
                waiting |= with_parents(one.target) - found
    return found


def test_layers_point_one_way() -> None:
    wrong = []
    for module in modules():
        for one in imports(module):
            if module == PACKAGE or not is_ours(one.target) or one.target == PACKAGE:
                continue
            here, there = part_of(module), part_of(one.target)
            assert here in LAYERS, f"{here} is new: say in LAYERS what it may import"
            if here != there and there not in LAYERS[here] and (module, one.target) not in EXCEPTIONS:
                wrong.append(f"{module}:{one.line} imports {one.target}")
    assert wrong == []


def test_exceptions_are_still_needed() -> None:
    real = {(module, one.target) for module in modules() for one in imports(module)}
    assert EXCEPTIONS - real == set()


def test_the_table_of_layers_has_no_circle() -> None:
    assert {name for below in LAYERS.values() for name in below} <= set(LAYERS)
    settled: set[str] = set()
    while len(settled) < len(LAYERS):
        ready = {name for name, below in LAYERS.items() if below <= settled} - settled
        assert ready, f"in a circle: {sorted(set(LAYERS) - settled)}"
        settled |= ready


def test_no_modules_import_each_other() -> None:
    graph = {
        module: {one.target for one in imports(module) if one.target in modules() and not one.lazy and not one.typing}
        for module in modules()
    }
    settled: set[str] = set()
    while len(settled) < len(graph):
        ready = {name for name, below in graph.items() if below <= settled | {name}} - settled
        assert ready, f"in a circle, or above one: {sorted(set(graph) - settled)}"
        settled |= ready


def test_each_library_has_its_door() -> None:
    wrong = []
    for module in modules():
        for one in imports(module):
            doors = DOORS.get(one.target.partition(".")[0])
            if doors is not None and not one.typing and not any(_inside(module, door) for door in doors):
                wrong.append(f"{module}:{one.line} imports {one.target}")
    assert wrong == []


def _inside(module: str, door: str) -> bool:
    return f"{module}.".startswith(door) if door.endswith(".") else module == door


def test_no_library_is_used_that_is_not_declared() -> None:
    standard = getattr(sys, "stdlib_module_names", None)
    if standard is None:
        pytest.skip("Python 3.9 does not list its standard library")
    used = {one.target.partition(".")[0] for module in modules() for one in imports(module)}
    assert used - set(standard) - THIRD_PARTY - {PACKAGE} == set()


def test_lean_modules_import_only_what_is_free() -> None:
    lean = lean_modules()
    assert {"nodeagent.hook.sge", "nodeagent.lock.store", "nodeagent.state.files", "nodeagent.errors"} <= lean
    wrong = []
    for module in sorted(lean):
        for one in imports(module):
            if one.typing or (is_ours(one.target) and not one.lazy):
                continue
            allowed = LEAN_ON_DEMAND | lean if one.lazy else LEAN_STANDARD
            if one.target not in allowed:
                wrong.append(f"{module}:{one.line} imports {one.target}{' on demand' if one.lazy else ''}")
    assert wrong == []


def test_lean_modules_say_so() -> None:
    said = {name: ast.get_docstring(tree_of(name)) or "" for name in lean_modules() if tree_of(name).body}
    assert [name for name, text in said.items() if "Lean" not in text] == []


def test_every_module_says_what_it_is_for() -> None:
    mute = [name for name in modules() if tree_of(name).body and not ast.get_docstring(tree_of(name))]
    assert mute == []
    empty = [name for name, path in modules().items() if path.name != "__init__.py" and not tree_of(name).body]
    assert empty == []


def test_the_package_itself_is_empty() -> None:
    assert (ROOT / PACKAGE / "__init__.py").read_bytes() == b""


@pytest.mark.parametrize("stub", STUBS)
def test_a_stub_is_short_and_isolated(stub: str) -> None:
    path = ROOT / stub
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_STUB_LINES
    assert lines[0] == "#!/usr/bin/python3 -IS"
    assert path.stat().st_mode & 0o777 == 0o755
    names = {one.target for one in walk(ast.parse("\n".join(lines)))}
    assert names <= LEAN_STANDARD | {"os.path", "marshal"} | lean_modules()


def test_there_are_no_other_stubs() -> None:
    found = {f"{path.parent.name}/{path.name}" for place in ("prolog", "epilog") for path in (ROOT / place).iterdir()}
    assert found == set(STUBS)
