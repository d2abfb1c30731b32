"""A process that writes history as fast as it can and tells what is committed; for tests that kill it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from nodeagent.history.entry import XID, Entry
from nodeagent.history.store import Store
from nodeagent.history.writer import Writer

FACTS = {"a": "x" * 8000}


class Telling(Store):
    """Says the number of the last entry once it is committed."""

    def add(self, entries: Sequence[Entry]) -> int:
        """See Store."""
        unfit = super().add(entries)
        sys.stdout.write(f"{entries[-1].check}\n")
        sys.stdout.flush()
        return unfit


class Quiet:
    """Logs errors as lines that no test expects."""

    def __getattr__(self, level: str) -> object:
        """Return a method of a logger."""
        return lambda event, **fields: sys.stdout.write(f"{event} {fields}\n")


def main() -> None:
    """Write entries with rising numbers, from the one given, until killed."""
    data_dir, number = sys.argv[1], int(sys.argv[2])
    writer = Writer(lambda: Telling(data_dir), 1e9, 4 << 20, Quiet())
    writer.start()
    while True:
        writer.record(Entry(time.time(), XID, check=str(number), facts=FACTS))
        number += 1
        time.sleep(0.0002)


if __name__ == "__main__":
    main()
