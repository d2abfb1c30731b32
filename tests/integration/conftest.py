"""Releases of Slurm, each unpacked once a session."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import trees
from tests.clusters.slurm_release import RELEASES
from tests.integration.support import require, unavailable

SlurmUsr = Callable[[str], "Path | None"]


@pytest.fixture(scope="session")
def slurm_usr() -> Iterator[SlurmUsr]:
    """What says where a release of Slurm is: the /usr of a tree, or None for this machine's own."""
    with ExitStack() as stack:

        @functools.cache
        def usr(release: str) -> Path | None:
            require("slurm")
            recipe = RELEASES[release]
            if recipe is None:
                return None
            require("trees")
            require("namespaces")
            try:
                file = trees.kept(recipe)
            except trees.NoTree as error:
                unavailable(str(error))
            return stack.enter_context(trees.unpacked(file)) / "usr"

        yield usr
