"""Names of what can be locked: `GPU-…` a whole GPU, `MIG-…` an instance, `GPU-…@k` a share. Lean."""

_ALLOWED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-@")
_LONGEST = 80


def is_unit(name: str) -> bool:
    """Say whether `name` can be a unit: the only names that ever become paths under `locks/` and `retired/`."""
    return name[:4] in ("GPU-", "MIG-") and len(name) <= _LONGEST and _ALLOWED.issuperset(name)
