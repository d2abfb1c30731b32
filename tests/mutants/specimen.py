"""The copy of the tree in which mutmut works, so that nothing of it is left in the tree itself."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
MUTATED = "nodeagent/health"
BESIDE = ("test_leftover.py", "test_lending.py", "test_site_check.py")
"""Tests of health/ whose names do not begin with test_health_."""
QUICK = ("no:cacheprovider", "no:unraisableexception", "no:threadexception", "no:logging")
"""pytest's plugins that no test here needs; without them a mutant is tried in half of the time."""
ALSO = ("use_git_change_detection = false", "timeout_multiplier = 4")
"""What is tried is a copy that is made anew, not the tree; a mutant may take four times as long as the code does."""


def make(place: Path) -> None:
    """Put the code, its tests and mutmut's settings into a directory, which is emptied before."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(TREE / "nodeagent", place / "nodeagent", ignore=leave)
    for kind in ("unit", "hardware"):  # what every run of pytest says of the latter is in tests/conftest.py
        shutil.copytree(TREE / "tests" / kind, place / "tests" / kind, ignore=leave)
    for file in (TREE / "pyproject.toml", *(TREE / "tests").glob("*.py")):
        shutil.copy(file, place / file.relative_to(TREE))
    for path in sorted((place / MUTATED).rglob("*.py")):
        path.write_text(without_property_decorators(path.read_text(encoding="utf-8")), encoding="utf-8")
    (place / "setup.cfg").write_text(settings(tests(place)), encoding="utf-8")


def tests(place: Path) -> list[str]:
    """Return the files with the tests of health/, relative to the copy."""
    unit = place / "tests" / "unit"
    found = [*sorted(unit.glob("test_health_*.py")), *(unit / name for name in BESIDE)]
    return [str(path.relative_to(place)) for path in found]


def settings(files: list[str]) -> str:
    """Return mutmut's settings. Hypothesis' tests are left out: what they find differs from run to run."""
    lists = {
        "source_paths": ["nodeagent"],
        "only_mutate": [f"{MUTATED}/*"],
        "pytest_add_cli_args": [*(word for name in QUICK for word in ("-p", name)), "-m", "not hypothesis"],
        "pytest_add_cli_args_test_selection": files,
    }
    lines = [f"{name} =\n" + "\n".join(f"    {value}" for value in values) for name, values in lists.items()]
    return "\n".join(["[mutmut]", *lines, *ALSO, ""])


def without_property_decorators(source: str) -> str:
    """Return the source with each `@property` made by a call instead: mutmut passes over what is decorated."""
    lines = source.splitlines()
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and _is_property(node)]
    for node in sorted(found, key=lambda node: node.lineno, reverse=True):
        lines.insert(node.end_lineno or node.lineno, f"{' ' * node.col_offset}{node.name} = property({node.name})")
        del lines[node.decorator_list[0].lineno - 1]
    return "\n".join(lines) + "\n"


def _is_property(node: ast.FunctionDef) -> bool:
    return [one.id for one in node.decorator_list if isinstance(one, ast.Name)] == ["property"]
