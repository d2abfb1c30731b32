"""Which units a job gets."""

import itertools
import random

from nodeagent.lock.placement import choose


def pairs(*linked: tuple[int, int], n: int = 4, quality: int = 9) -> list[list[int]]:
    table = [[1] * n for _ in range(n)]
    for i, j in linked:
        table[i][j] = table[j][i] = quality
    return table


def test_the_lowest_are_taken_where_links_do_not_differ() -> None:
    assert choose(2, pairs(n=4)) == [0, 1]
    assert choose(0, pairs()) == []
    assert choose(4, pairs()) == [0, 1, 2, 3]


def test_a_linked_pair_is_taken_together() -> None:
    assert choose(2, pairs((0, 3), (1, 2))) == [0, 3]
    assert choose(2, pairs((1, 2))) == [1, 2]


def test_one_unit_leaves_the_linked_pair_whole() -> None:
    assert choose(1, pairs((0, 1))) == [2]


def test_healthy_ones_are_preferred_to_linked_ones() -> None:
    assert choose(2, pairs((0, 1)), [1, 0, 0, 0]) == [2, 3]
    assert choose(3, pairs((0, 3)), [0, 0, 1, 0]) == [0, 1, 3]


def brute_force(count: int, links: list[list[int]]) -> tuple[int, int]:
    def inner(members: "tuple[int, ...]") -> int:
        return sum(links[i][j] for i, j in itertools.combinations(members, 2))

    everything = range(len(links))
    return max(
        (inner(chosen), inner(tuple(set(everything) - set(chosen))))
        for chosen in itertools.combinations(everything, count)
    )


def test_the_choice_is_as_good_as_trying_everything() -> None:
    rng = random.Random(7)  # noqa: S311
    for _ in range(200):
        n = rng.randint(1, 7)
        links = [[0] * n for _ in range(n)]
        for i, j in itertools.combinations(range(n), 2):
            links[i][j] = links[j][i] = rng.choice([1, 2, 5, 20])
        count = rng.randint(1, n)
        chosen = choose(count, links)
        rest = [i for i in range(n) if i not in chosen]
        score = tuple(sum(links[i][j] for i, j in itertools.combinations(part, 2)) for part in (chosen, rest))
        assert score == brute_force(count, links)
        assert choose(count, links) == chosen
