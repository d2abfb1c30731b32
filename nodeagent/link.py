"""Links what a hook imports into one file, so that its start is one read instead of a search for twenty modules.

Run where the package is installed, by the interpreter that runs the hooks: `python3 -IS nodeagent/link.py`. Writes
`nodeagent/__pycache__/{slurm,sge}.TAG.linked` beside Python's own .pyc files, TAG naming the interpreter. A stub
takes its file if it is there; without it, or under another interpreter, it imports as ever. The file holds the
arguments of one `exec`: TAKE_UP's code, and its globals. What hooks import at need is in it too, and made only then. A
file of an older release must be gone before its modules are: an installation removes `__pycache__` first.
"""

import marshal
import os
import sys
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType

    Linked = tuple[str, bool, CodeType]

AT_NEED = {
    "slurm": ("nodeagent.hook.ends",),
    "sge": ("nodeagent.hook.ends", "nodeagent.isolation.confine"),
}
"""The modules of `nodeagent.hook` that stubs import, and what some of their runs import besides."""

TAKE_UP = """\
import marshal
import sys


class AtNeed:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in at_need:
            return None
        spec = type(sys.__spec__)(name, AtNeed, is_package=at_need[name][0])
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(f"{library}/{name.replace('.', '/')}")
        return spec

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        exec(marshal.loads(at_need[module.__name__][1]), module.__dict__)


sys.meta_path.insert(0, AtNeed)
for name, is_package, code in modules:
    module = sys.modules[name] = type(sys)(name)
    parent, _, leaf = name.rpartition(".")
    module.__package__ = name if is_package else parent
    if is_package:
        module.__path__ = [f"{library}/{name.replace('.', '/')}"]
    exec(code, module.__dict__)
    if parent:
        setattr(sys.modules[parent], leaf, module)
"""
"""What a stub executes: makes the modules, each after those that it imports, and on demand those of `at_need`."""


class _Noting(SourceFileLoader):
    """Notes the package's modules in the order in which their execution ends: dependencies first."""

    ended: "list[ModuleType]" = []  # noqa: RUF012  one link at a time uses it

    def exec_module(self, module: "ModuleType") -> None:
        super().exec_module(module)
        if module.__name__.partition(".")[0] == "nodeagent":
            self.ended.append(module)


def modules_of(names: "Sequence[str]", library: str) -> "list[Linked]":
    """Return these modules and what they import: (name, is a package, code) in an order to execute them in.

    The code is what `-OO` would run: without docstrings, which no hook reads, and assertions, which tell mypy what a
    caller has looked at.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "nodeagent"]:
        del sys.modules[name]
    _Noting.ended.clear()
    # fcntl is a shared library in some builds of Python
    finder = FileFinder.path_hook((ExtensionFileLoader, EXTENSION_SUFFIXES), (_Noting, SOURCE_SUFFIXES))
    before = sys.path[:], sys.path_hooks[:]
    sys.path[0:0] = [library]
    sys.path_hooks.insert(0, finder)
    sys.path_importer_cache.clear()
    try:
        for name in names:
            __import__(name)
    finally:
        sys.path[:], sys.path_hooks[:] = before
        sys.path_importer_cache.clear()
    found = []
    for module in _Noting.ended:
        path = str(module.__file__)
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec", dont_inherit=True, optimize=2)
        found.append((module.__name__, hasattr(module, "__path__"), code))
    return found


def link(family: str, library: str) -> str:
    """Write the linked file of a family, whole or not at all, and return its path.

    Raises:
        OSError: it could not be written.

    """
    first = [f"nodeagent.hook.{family}"]
    modules = modules_of(first, library)
    known = {name for name, _, _ in modules}
    rest = [one for one in modules_of([*first, *AT_NEED[family]], library) if one[0] not in known]
    at_need = {name: (is_package, marshal.dumps(code)) for name, is_package, code in rest}
    parts = {"modules": modules, "at_need": at_need, "library": library}
    path = f"{library}/nodeagent/__pycache__/{family}.{sys.implementation.cache_tag}.linked"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fresh = f"{path}.{os.getpid()}"
    try:
        with open(fresh, "wb") as file:
            file.write(marshal.dumps((compile(TAKE_UP, "<linked>", "exec"), parts)))
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())  # after a crash of the node no hook is to find a name without its data
        os.rename(fresh, path)
    except OSError:
        if os.path.exists(fresh):
            os.unlink(fresh)
        raise
    return path


def main() -> None:
    """Link each family of the library that this file is in."""
    library = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for family in AT_NEED:
        link(family, library)


if __name__ == "__main__":
    main()
