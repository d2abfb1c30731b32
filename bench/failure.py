"""What keeps a bench from giving figures."""


class BenchFailed(Exception):
    """The thing measured did not do what it does in production, so its figures would mean nothing."""
