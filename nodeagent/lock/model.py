"""Whether a GPU is of the model that a job asks for. Lean."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nodeagent.state.verdict_file import UnitLine

_NO_OPERATORS = frozenset("!&()[]?\\")
_LONGEST = 200
_BLANKS = {ord(c): " " for c in "-_"}


def is_pattern(text: str) -> bool:
    """Say whether this is a pattern that `matches` can judge: short, and none of an expression's other signs."""
    return 0 < len(text) <= _LONGEST and text.isprintable() and not _NO_OPERATORS.intersection(text)


def matches(model: str, pattern: str) -> bool:
    """Say whether a model's name, as NVML gives it, is what a pattern means.

    A word means every model that has it in its name: `A100`, `1g.10gb`. `*` stands for anything, so the words around
    it must come in their order: `A100*80GB`. `|` separates alternatives. Case is nothing, and blank, `-` and `_` are
    one.
    """
    name = _plain(model)
    return any(_has(name, alternative.split("*")) for alternative in _plain(pattern).split("|"))


def _plain(text: str) -> str:
    return " ".join(text.lower().translate(_BLANKS).split())


def _has(name: str, words: "list[str]") -> bool:
    at = 0
    for word in words:
        at = name.find(word.strip(), at)
        if at < 0:
            return False
        at += len(word.strip())
    return True


def of_model(lines: "tuple[UnitLine, ...]", pattern: str) -> "tuple[UnitLine, ...]":
    """Return the units of that model; all of them where none is asked for."""
    return tuple(line for line in lines if matches(line.model, pattern)) if pattern else lines
