"""An administrator at a keyboard of their own: does with scontrol what each line of standard input says, when it says.

A line is a moment (monotonic seconds) and the words of a command, separated by tabs; the answer is the exit status and
the moments at which the command began and ended.
"""

from __future__ import annotations

import subprocess
import sys
import time


def main() -> None:
    """Serve until the end of the input."""
    for line in sys.stdin:
        moment, *words = line.rstrip("\n").split("\t")
        time.sleep(max(0.0, float(moment) - time.monotonic()))
        began = time.monotonic()
        status = subprocess.run(["/usr/bin/scontrol", *words], capture_output=True, check=False, timeout=60).returncode
        sys.stdout.write(f"{status}\t{began}\t{time.monotonic()}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
