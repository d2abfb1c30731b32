"""Which of the free units a job gets: the best-linked set that leaves the best-linked remainder. Lean."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

EXACT_UP_TO = 16


def choose(count: int, links: "Sequence[Sequence[int]]", preference: "Sequence[int] | None" = None) -> "list[int]":
    """Choose `count` of n units.

    Args:
        count: how many; 0 <= count <= n.
        links: n x n symmetric, `links[i][j]` the quality of the connection of units i and j (more is better; the
            diagonal is not read).
        preference: n numbers, units with a smaller one are taken first (0 healthy, 1 degraded); all 0 by default.

    Returns:
        The indices, ascending. Best first by: total preference, links within the set, links within the remainder,
        lowest indices: so the same question always has the same answer.

    """
    n = len(links)
    rank = list(preference or [0] * n)
    if count <= 0:
        return []
    order = sorted(range(n), key=lambda i: (rank[i], i))
    values = {links[i][j] for i in range(n) for j in range(i)}
    if count == n or len(values) <= 1 or n > EXACT_UP_TO:
        return sorted(order[:count])
    # The preference decides before any link: all units ranked below the last one taken are in, those above are out.
    limit = rank[order[count - 1]]
    fixed = [i for i in order if rank[i] < limit]
    pool = [i for i in order if rank[i] == limit]
    total = sum(links[i][j] for i in range(n) for j in range(i))
    rowsum = [sum(links[i][j] for j in range(n) if j != i) for i in range(n)]
    best: tuple[int, int] = (-1, -1)
    best_set: list[int] = []

    def extend(chosen: "list[int]", start: int, inner: int, rows: int) -> None:
        nonlocal best, best_set
        if len(chosen) == count:
            # links inside the rest = all - those touching the chosen (row sums count inner ones twice)
            score = (inner, total - (rows - inner))
            if score > best:
                best, best_set = score, chosen[:]
            return
        for at in range(start, len(pool) - (count - len(chosen)) + 1):
            unit = pool[at]
            row = links[unit]
            gained = 0
            for other in chosen:
                gained += row[other]
            chosen.append(unit)
            extend(chosen, at + 1, inner + gained, rows + rowsum[unit])
            chosen.pop()

    inner = sum(links[i][j] for i in fixed for j in fixed if j < i)
    extend(list(fixed), 0, inner, sum(rowsum[i] for i in fixed))
    return sorted(best_set)
