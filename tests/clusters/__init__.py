"""Real schedulers on loopback for tests: started in a directory of their own, gone without a trace after `stop`."""
