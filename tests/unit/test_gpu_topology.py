"""The quality of connections: its order, its symmetry, and that what is better stays better in sums."""

from __future__ import annotations

import pytest

from nodeagent.gpu.topology import TO_GPU, TO_SWITCH, NvLink, Place, largest_linked, link_qualities, link_quality
from nodeagent.lock.placement import choose

A, B, C, D = "0000:06:00.0", "0000:07:00.0", "0000:85:00.0", "0000:86:00.0"


def pair(level: int | None, links: int = 0, version: int = 2, remote: int = TO_GPU) -> int:
    """The quality of A and B, at a PCIe level and with so many NVLinks."""
    ancestors = {} if level is None else {B: level}
    here = Place([NvLink(version, remote, B)] * links, ancestors)
    return link_quality(A, here, B, Place([NvLink(version, remote, A)] * links))


def test_the_order_of_connections() -> None:
    ascending = [
        *[pair(level) for level in (None, 50, 40, 30, 20, 10, 0)],
        *(pair(50, links=1), pair(10, links=1), pair(50, links=2), pair(50, links=2, version=4)),
        pair(50, links=18, version=6, remote=TO_SWITCH),
    ]
    assert ascending == sorted(set(ascending))
    assert ascending[:7] == list(range(7))


def test_one_nvlink_outweighs_all_that_pcie_can_sum_up_to() -> None:
    assert pair(50, links=1, version=1) > 120 * pair(0)


def test_a_level_that_nvml_does_not_name_is_no_connection() -> None:
    assert pair(17) == 0


def test_whichever_comes_first_it_is_the_same() -> None:
    here, there = Place([NvLink(2, TO_GPU, B)], {B: 10}), Place([NvLink(2, TO_GPU, A)] * 2)
    assert link_quality(A, here, B, there) == link_quality(B, there, A, here) == 2005


def test_a_link_that_one_end_says_is_down_does_not_count() -> None:
    here = Place([NvLink(2, TO_GPU, B)] * 2, {B: 50})
    assert link_quality(A, here, B, Place([NvLink(2, TO_GPU, A)])) == 2001
    assert link_quality(A, here, B, Place()) == 1


def test_links_to_others_do_not_count() -> None:
    here, there = Place([NvLink(2, TO_GPU, C)], {B: 50}), Place([NvLink(2, TO_GPU, C)])
    assert link_quality(A, here, B, there) == 1


def test_a_switch_joins_all_with_all() -> None:
    switched = {bus_id: Place([NvLink(6, TO_SWITCH, "0000:c0:00.0")] * 18) for bus_id in (A, B, C)}
    switched[C] = Place([NvLink(6, TO_SWITCH, "0000:c0:00.0")] * 9)
    table = link_qualities({**switched, D: Place()})
    assert table[A][B] == 18 * 6000
    assert table[A][C] == table[B][C] == 9 * 6000
    assert set(table[D].values()) == {0}


def test_the_table_is_symmetric_and_without_a_diagonal() -> None:
    table = link_qualities({A: Place((), {B: 10, C: 50}), B: Place((), {C: 50}), C: Place()})
    assert table == {A: {B: 5, C: 1}, B: {A: 5, C: 1}, C: {A: 1, B: 1}}
    assert link_qualities({}) == {}


def test_placement_takes_the_pair_with_the_double_link() -> None:
    places = {
        A: Place([NvLink(2, TO_GPU, B), NvLink(2, TO_GPU, C), NvLink(2, TO_GPU, C)]),
        B: Place([NvLink(2, TO_GPU, A)]),
        C: Place([NvLink(2, TO_GPU, A)] * 2),
    }
    table = link_qualities(places)
    ids = sorted(places)
    matrix = [[table[one].get(other, 0) for other in ids] for one in ids]
    assert [ids[at] for at in choose(2, matrix)] == [A, C]


def _graph(n: int, pairs: set[tuple[int, int]], quality: int, rest: int = 1) -> list[list[int]]:
    return [[quality if (min(i, j), max(i, j)) in pairs else rest for j in range(n)] for i in range(n)]


@pytest.mark.parametrize(
    ("links", "size"),
    [
        ([], 0),
        ([[0]], 1),
        (_graph(3, set(), 0, rest=0), 1),
        (_graph(3, set(), 0, rest=2), 1),
        (_graph(4, {(0, 1), (1, 2), (0, 2)}, 5), 3),
        (_graph(4, {(0, 1), (1, 2), (2, 3), (0, 3)}, 4000, rest=6), 2),
        (_graph(16, {(i, j) for i in range(16) for j in range(i + 1, 16)}, 12000), 16),
        (_graph(16, {(i, j) for i in range(16) for j in range(i + 1, 16) if j != i + 8}, 12000), 8),
    ],
)
def test_the_largest_set_that_is_linked_throughout(links: list[list[int]], size: int) -> None:
    assert largest_linked(links) == size
