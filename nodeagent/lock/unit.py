"""Names of what can be locked: `GPU-…` a whole GPU, `MIG-…` an instance, `GPU-…@k` a share. Lean."""

_ALLOWED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-@")
_LONGEST = 80


def is_unit(name: str) -> bool:
    """Say whether `name` can be a unit: the only names that ever become paths under `locks/` and `retired/`."""
    return name[:4] in ("GPU-", "MIG-") and len(name) <= _LONGEST and _ALLOWED.issuperset(name)


def share(gpu: str, number: int) -> str:
    """Return the name of a GPU's share; they are counted from 0."""
    return f"{gpu}@{number}"


def is_share(unit: str) -> bool:
    """Say whether a unit is a share of a GPU."""
    return "@" in unit


def device(unit: str) -> str:
    """Return what the unit is a share of; a whole GPU, or an instance, is itself."""
    return unit.partition("@")[0]
