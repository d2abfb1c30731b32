"""The site's driver set for the driver that runs: looked for when that is new, and now and then."""

from __future__ import annotations

from nodeagent.agent.journal import Log
from nodeagent.clock import Clock
from nodeagent.config.model import Config
from nodeagent.drivers.site_set import bind_list
from nodeagent.errors import CommandFailed

_DAY = 86400.0


class DriverSet:
    """Finds the bind list for hooks. `pause`: seconds between two looks while the driver stays the same."""

    def __init__(self, config: Config, pause: float, clock: Clock, log: Log) -> None:
        self.binds = ""
        self._config = config
        self._clock = clock
        self._log = log
        self._shortest = pause
        self._pause = 0.0
        self._driver = ""
        self._looked = float("-inf")

    def see(self, driver: str) -> None:
        """Look for the set if the driver is another than before: that cannot wait."""
        if driver != self._driver:
            self._find(driver)

    def look_again(self, driver: str) -> None:
        """Look whether the set has changed, if it is time to."""
        if self._clock.monotonic() - self._looked >= self._pause:
            self._find(driver)

    def _find(self, driver: str) -> None:
        self.binds, pause = "", self._shortest
        try:
            self.binds = bind_list(self._config.drivers, driver)
        except CommandFailed as error:
            # Each try may leave a hanging process behind: seldom, then, and seldomer.
            pause = min(_DAY, 2 * max(pause, self._pause))
            self._log.warning("driver_set_unreachable", why=str(error))
        self._pause = pause
        self._driver, self._looked = driver, self._clock.monotonic()
