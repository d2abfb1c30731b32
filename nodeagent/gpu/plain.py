"""Facts as JSON has them and back: what is at its default is left out, what a reader does not know it passes over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar

from nodeagent.gpu import facts as all_facts

T = TypeVar("T")

_KINDS: Mapping[str, type] = {
    name: kind for name, kind in vars(all_facts).items() if isinstance(kind, type) and is_dataclass(kind)
}
_SCALARS: Mapping[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}


def to_plain(facts: Any) -> dict[str, Any]:
    """Return a dataclass of facts.py as JSON has it, without what is at its default."""
    return {
        field.name: _plain(value)
        for field in fields(facts)
        if not _is_default(field, value := getattr(facts, field.name))
    }


def from_plain(kind: type[T], plain: Any) -> T:
    """Return the facts of that kind that `to_plain` wrote, this release or another.

    Raises:
        ValueError: a value is not what its field holds, or one without a default is missing.

    """
    if not isinstance(plain, Mapping):
        raise ValueError(f"{kind.__name__}: {_short(plain)} is no object")
    values = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in plain:
            values[field.name] = _value(str(field.type), plain[field.name], f"{kind.__name__}.{field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{kind.__name__}.{field.name} is missing")
    return kind(**values)


def _is_default(field: Field[Any], value: Any) -> bool:
    if field.default_factory is not MISSING:
        return bool(value == field.default_factory())
    return field.default is not MISSING and bool(value == field.default)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_plain(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return dict(value) if isinstance(value, Mapping) else value


def _value(annotation: str, plain: Any, where: str) -> Any:
    """Return the value of a field whose type is written as in facts.py: scalars, `tuple[X, ...]`, `dict[str, X]`."""
    alternatives = annotation.split(" | ")
    if plain is None and "None" in alternatives:
        return None
    outer, _, inner = alternatives[0].partition("[")
    if outer == "tuple" and isinstance(plain, list):
        return tuple(_value(inner.partition(",")[0], one, where) for one in plain)
    if outer in ("dict", "Mapping") and isinstance(plain, Mapping):
        of = inner.rstrip("]").partition(", ")[2]
        return {str(key): _value(of, one, f"{where}.{key}") for key, one in plain.items()}
    if outer in _KINDS:
        return from_plain(_KINDS[outer], plain)
    if not isinstance(plain, _SCALARS.get(outer, ())) or (isinstance(plain, bool) and outer != "bool"):
        raise ValueError(f"{where}: {_short(plain)} is not {annotation}")
    return plain


def _short(plain: Any) -> str:
    return repr(plain)[:40]


def substitute(facts: T, change: Callable[[str, str], str]) -> T:
    """Return the same facts with every text replaced by what `change` makes of its field's name and itself.

    The keys of a mapping are texts of its field, too.
    """
    values = {field.name: _changed(field.name, getattr(facts, field.name), change) for field in fields(facts)}  # type: ignore[arg-type]
    return type(facts)(**values)


def _changed(name: str, value: Any, change: Callable[[str, str], str]) -> Any:
    if isinstance(value, str):
        return change(name, value)
    if is_dataclass(value):
        return substitute(value, change)
    if isinstance(value, tuple):
        return tuple(_changed(name, one, change) for one in value)
    if isinstance(value, Mapping):
        return {change(name, key): _changed(name, one, change) for key, one in value.items()}
    return value
