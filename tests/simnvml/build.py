"""Compiles the stand-in library, once for each state of its sources."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

SONAME = "libnvidia-ml.so.1"
SOURCES = Path(__file__).parent
FLAGS = (
    *("-shared", "-fPIC", "-std=c11", "-O1", "-pthread", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{SONAME}"),
)


class CompilerMissing(Exception):
    """There is no `cc` on PATH."""


def _digest(sources: list[Path]) -> str:
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def build(directory: Path) -> Path:
    """Compile the library below `directory` unless it is there; returns the directory for LD_LIBRARY_PATH.

    Any number of processes may call this at once: one compiles, the others wait for it.
    Raises CompilerMissing, or CalledProcessError with the compiler's words in `stderr`.
    """
    sources = sorted(SOURCES.glob("*.[ch]"))
    home = directory / _digest(sources)
    library = home / SONAME
    if library.exists():
        return home
    compiler = shutil.which("cc")
    if compiler is None:
        raise CompilerMissing
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            unfinished = home / "unfinished.so"
            units = [str(source) for source in sources if source.suffix == ".c"]
            argv = [compiler, *FLAGS, "-o", str(unfinished), *units]
            subprocess.run(argv, check=True, capture_output=True, text=True)
            os.replace(unfinished, library)
    return home
