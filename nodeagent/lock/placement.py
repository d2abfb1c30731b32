"""Which of the free units a job gets: the best-linked set, and what it leaves for the next. Lean.

Every set of the wanted size has a value, one integer that says it all: what counts more stands in the higher digits,
and the lowest n bits are the set itself (the first unit's bit highest), so that no two values are equal and the
greatest one is the answer. It is a sum over the set's pairs and its single units, for what a set leaves behind is the
same for all sets but for what touches it: rest = all - rows of the chosen + pairs of the chosen.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Pairs = list[list[int]]
    Singles = list[int]

EXACT_UP_TO = 16
_STEPS = 256


def choose(
    count: int,
    links: "Sequence[Sequence[int]]",
    preference: "Sequence[int] | None" = None,
    spread: "Sequence[int] | None" = None,
) -> "list[int]":
    """Choose `count` of n units.

    Args:
        count: how many; 0 <= count <= n.
        links: n x n symmetric, `links[i][j]` the quality of the connection of units i and j (more is better; the
            diagonal is not read).
        preference: n numbers, units with a smaller one are taken first (0 healthy, 1 degraded); all 0 by default.
        spread: None packs; else the n units' NUMA nodes, and jobs are spread over these.

    Returns:
        The indices, ascending. Best first by: least total preference; greatest sum of links within the set; then

        - packing: greatest sum of links within the remainder, so that the next job finds well-linked units together;
        - spreading: fewest pairs of the remainder that share a NUMA node, then least sum of links within the
          remainder. So a job of one GPU goes to the NUMA node with the most free GPUs, there to the GPU with the most
          free ones near it (an idle PCIe switch before a busy one): jobs that live on the host's memory and PCIe
          share neither while they can. A job of several GPUs still gets the best-linked set, wherever that is least
          crowded; where no set is better linked it is divided evenly over the NUMA nodes;

        and lowest indices at last, so the same question always has the same answer. That is exact for up to
        EXACT_UP_TO units. Of more (MIG instances) it is a rule of thumb with the same aims: a set is grown from each
        of a few units that differ in their links, always by the unit that adds most, and the best of these sets is
        taken. A unit of lesser preference is taken only where no better one is left; one unit is chosen exactly.

    """
    n = len(links)
    if count <= 0 or count >= n:
        return list(range(n if count > 0 else 0))
    pairs, singles = _values(links, preference, spread)
    value = _greatest(count, pairs, singles) if n <= EXACT_UP_TO else _grown(count, pairs, singles)
    return [i for i in range(n) if value >> (n - 1 - i) & 1]


def _values(
    links: "Sequence[Sequence[int]]", preference: "Sequence[int] | None", spread: "Sequence[int] | None"
) -> "tuple[Pairs, Singles]":
    """Return what each pair and each unit adds to the value of a set; nothing is negative.

    All sets compared have one size, so a constant may be added to every pair's or every unit's share. The diagonal is
    a constant too.
    """
    n = len(links)
    least = min([min(row[:i]) for i, row in enumerate(links) if i])
    near = [[quality - least for quality in row] for row in links]
    for i in range(n):
        near[i][i] = 0
    kept = near  # what a pair is worth if it stays behind
    if spread is not None:
        shared = sum(map(sum, near)) + 1
        most = shared + max(map(max, near))
        kept = [
            [most - quality - (shared if node == other else 0) for quality, other in zip(row, spread)]
            for row, node in zip(near, spread)
        ]
    rows = list(map(sum, kept))
    step, top = sum(rows) + 1, max(rows)
    pairs = [[(here * step + left) << n for here, left in zip(*both)] for both in zip(near, kept)]
    singles = [((top - row) << n) + (1 << (n - 1 - i)) for i, row in enumerate(rows)]
    if preference is not None and len(set(preference)) > 1:
        step, worst = ((sum(map(sum, pairs)) + sum(singles) >> n) + 1) << n, max(preference)
        singles = [(worst - rank) * step + single for rank, single in zip(preference, singles)]
    return pairs, singles


def _greatest(count: int, pairs: "Pairs", singles: "Singles") -> int:
    """Return the greatest value of all sets of `count` units: every set is looked at, thousands in one addition.

    A long integer serves as a vector: one lane of `width` bits for each set, wide enough that no sum leaves its lane.
    values[m] has a lane for each set of m of the units seen so far. A further unit doubles the sets: those without it,
    then, in the higher lanes, those with it, of m - 1 others each. gains[m] says in lanes of the same order what the
    unit adds to each such set; it grows in the same way. Sizes that cannot come to `count` any more are left out.
    """
    n = len(singles)
    width = (sum(map(sum, pairs)) + sum(singles)).bit_length() + 1
    sets = [[1] + [0] * n]  # sets[t][m]: how many sets of m there are of t units
    for t in range(n):
        sets.append([1] + [sets[t][m] + sets[t][m - 1] for m in range(1, n + 1)])
    ones, lanes = 1, 1
    while lanes < max(sets[n][: count + 1]):
        ones |= ones << width * lanes
        lanes *= 2
    values = [0] * (count + 1)
    for t in range(n):
        gains = [singles[t]] + [0] * (count - 1)
        for s in range(t):
            quality = pairs[t][s]
            for m in range(min(s + 1, count - 1), max(0, count - n + s), -1):
                with_s = gains[m - 1] + quality * (ones >> width * (lanes - sets[s][m - 1]))
                gains[m] |= with_s << width * sets[s][m]
        for m in range(min(t + 1, count), max(0, count - n + t), -1):
            values[m] |= (values[m - 1] + gains[m - 1]) << width * sets[t][m]
    return _greatest_lane(values[count], sets[n][count], width)


def _greatest_lane(vector: int, lanes: int, width: int) -> int:
    """Return the greatest of the lanes, whose highest bit is free: the halves are compared lane by lane, and again.

    An odd number's middle lane stands in both halves.
    """
    while lanes > 1:
        half = (lanes + 1) // 2
        every = (1 << width * half) - 1
        low, high = vector & every, vector >> width * (lanes - half)
        guards = every // ((1 << width) - 1) << (width - 1)
        keep = ((low | guards) - high) & guards  # a guard survives where low >= high
        keep -= keep >> (width - 1)  # and becomes all the bits below it
        vector, lanes = high ^ ((low ^ high) & keep), half
    return vector


def _grown(count: int, pairs: "Pairs", singles: "Singles") -> int:
    """Return the greatest value of the sets grown from some units, one unit at a time, in about _STEPS steps in all."""
    n = len(singles)
    taken = -(sum(map(sum, pairs)) + sum(singles))
    kinds = {single >> n: i for i, single in reversed(list(enumerate(singles)))}  # the first unit of each row sum
    starts = [kinds[kind] for kind in sorted(kinds, reverse=True)]
    best = 0
    for start in starts[:: -(-len(starts) * count // _STEPS)]:
        gains, value, unit = singles[:], 0, start
        for _ in range(count):
            value += gains[unit]
            gains[unit] = taken
            gains = [gain + more for gain, more in zip(gains, pairs[unit])]
            unit = gains.index(max(gains))
        best = max(best, value)
    return best
