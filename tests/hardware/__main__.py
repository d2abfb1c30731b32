"""`python -m tests.hardware`: run this suite if the machine has a GPU, else say in a line that it has none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.hardware.place import Nowhere, place

if __name__ == "__main__":
    found = place()
    if isinstance(found, Nowhere):
        print(f"tests/hardware: not run, {found.why}")
        sys.exit(0)
    sys.exit(pytest.main([str(Path(__file__).parent), *sys.argv[1:]]))
