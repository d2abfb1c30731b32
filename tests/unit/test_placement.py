"""Which units a job gets."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.placement import Layout, first_fit, layouts, pack, stream
from nodeagent.config.load import load
from nodeagent.errors import ConfigError
from nodeagent.hook import prolog
from nodeagent.hook.node import open_node
from nodeagent.lock.placement import EXACT_UP_TO, choose
from nodeagent.state.verdict_file import DEGRADED, OK, UnitLine
from tests.support import LaidOutNode, uuid

Table = list[list[int]]


def pairs(*linked: tuple[int, int], n: int = 4, quality: int = 9) -> Table:
    table = [[1] * n for _ in range(n)]
    for i, j in linked:
        table[i][j] = table[j][i] = quality
    return table


def random_links(rng: random.Random, n: int, qualities: Sequence[int]) -> Table:
    links = [[0] * n for _ in range(n)]
    for i, j in itertools.combinations(range(n), 2):
        links[i][j] = links[j][i] = rng.choice(qualities)
    return links


def some_of(node: Layout, places: Sequence[int]) -> tuple[Table, list[int]]:
    return [[node.links[i][j] for j in places] for i in places], [node.numa[i] for i in places]


def tried_all(
    count: int, links: Table, preference: Sequence[int] | None = None, spread: Sequence[int] | None = None
) -> list[int]:
    """The definition, word by word; of equals `max` keeps the first, and combinations come lowest first."""
    everything = range(len(links))

    def merit(chosen: tuple[int, ...]) -> tuple[int, ...]:
        rest = [i for i in everything if i not in chosen]
        inner, left = (sum(links[i][j] for i, j in itertools.combinations(part, 2)) for part in (chosen, rest))
        ranks = sum(preference[i] for i in chosen) if preference else 0
        if spread is None:
            return -ranks, inner, left
        together = sum(spread[i] == spread[j] for i, j in itertools.combinations(rest, 2))
        return -ranks, inner, -together, -left

    return list(max(itertools.combinations(everything, count), key=merit))


# -- packing ----------------------------------------------------------------------------------------------------------


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


def test_what_is_on_the_diagonal_says_nothing() -> None:
    links = pairs((1, 2))
    for i in range(4):
        links[i][i] = 10**6 * (3 - i) - 5
    assert choose(2, links) == [1, 2]
    assert choose(1, links, None, [0, 0, 0, 0]) == [1]


# -- spreading --------------------------------------------------------------------------------------------------------


def test_a_single_goes_to_the_numa_node_with_the_most_free() -> None:
    numa = [0, 0, 1, 1, 1]
    assert choose(1, pairs(n=5), None, numa) == [2]
    assert choose(1, pairs((0, 1), n=5), None, numa) == [2]
    assert choose(1, pairs(n=5)) == [0]


def test_singles_take_turns_over_numa_nodes_then_switches() -> None:
    node, free, order = layouts()["8 x L40S PCIe"], list(range(8)), []
    while free:
        [at] = choose(1, *some_of(node, free)[:1], None, some_of(node, free)[1])
        order.append(free.pop(at))
    assert order == [0, 4, 2, 6, 1, 5, 3, 7]


def test_a_linked_pair_stays_together_where_most_is_free() -> None:
    node = layouts()["8 x L40S PCIe"]
    links, numa = some_of(node, [0, 1, 4, 5, 6, 7])
    assert choose(2, links, None, numa) == [2, 3]
    assert choose(2, links) == [0, 1]


def test_where_links_are_equal_a_job_is_divided() -> None:
    assert choose(2, pairs(), None, [0, 0, 1, 1]) == [0, 2]
    assert choose(2, pairs()) == [0, 1]


def test_without_known_numa_nodes_links_spread() -> None:
    assert choose(1, pairs((1, 2)), None, [-1] * 4) == [1]


def test_healthy_ones_are_preferred_to_lonely_ones() -> None:
    assert choose(1, pairs(), [0, 0, 1, 1], [0, 1, 1, 1]) == [1]
    assert choose(1, pairs(), [0, 1, 1, 1], [0, 1, 1, 1]) == [0]


# -- exactness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qualities", [[1, 2, 5, 20], [0, 1], range(10**6), [-3, 0, 7], [10**30, 10**30 + 1]])
def test_the_choice_is_that_of_trying_everything(qualities: Sequence[int]) -> None:
    rng = random.Random(7)  # noqa: S311
    for _ in range(150):
        n = rng.randint(1, 8)
        count = rng.randint(1, n)
        links = random_links(rng, n, qualities)
        preference = rng.choice([None, [rng.randint(0, 2) for _ in range(n)]])
        spread = rng.choice([None, [rng.randint(-1, 2) for _ in range(n)]])
        assert choose(count, links, preference, spread) == tried_all(count, links, preference, spread)


@pytest.mark.parametrize("name", layouts())
def test_the_choice_is_that_of_trying_everything_on_real_nodes(name: str) -> None:
    rng, node = random.Random(name), layouts()[name]  # noqa: S311
    for _ in range(60):
        free = sorted(rng.sample(range(len(node.links)), rng.randint(2, min(9, len(node.links)))))
        links, numa = some_of(node, free)
        count = rng.randint(1, len(free))
        preference = [int(rng.random() < 0.2) for _ in free]
        for spread in (None, numa):
            assert choose(count, links, preference, spread) == tried_all(count, links, preference, spread)


@pytest.mark.parametrize("spread", [None, [0] * 8 + [1] * 8])
def test_the_choice_is_that_of_trying_everything_on_sixteen(spread: list[int] | None) -> None:
    different = random_links(random.Random(3), 16, range(126_000))  # noqa: S311
    assert choose(8, different, None, spread) == tried_all(8, different, None, spread)
    for name in ("16 x L40S PCIe", "16 x H100 NVSwitch"):
        links = layouts()[name].links
        for count in (3, 5, 13):
            assert choose(count, links, None, spread) == tried_all(count, links, None, spread)


# -- more units than can all be tried ---------------------------------------------------------------------------------


def instances(*free: int) -> tuple[Table, list[int]]:
    """GPUs with so many free MIG instances each, four GPUs a NUMA node."""
    gpu = [at for at, count in enumerate(free) for _ in range(count)]
    return [[6 if a == b else 2 if a // 4 == b // 4 else 1 for b in gpu] for a in gpu], [a // 4 for a in gpu]


def test_of_many_the_gpu_with_just_enough_is_used_up() -> None:
    links, numa = instances(7, 3, 7, 5)
    assert len(links) > EXACT_UP_TO
    assert choose(3, links) == [7, 8, 9]
    assert choose(5, links) == [17, 18, 19, 20, 21]
    assert choose(1, links) == [7]
    assert choose(1, links, None, numa) == [0]


def test_of_many_one_is_chosen_exactly() -> None:
    rng = random.Random(5)  # noqa: S311
    for _ in range(30):
        n = rng.randint(EXACT_UP_TO + 1, 40)
        links = random_links(rng, n, [1, 2, 3])
        preference = [rng.randint(0, 1) for _ in range(n)]
        spread = rng.choice([None, [rng.randint(0, 1) for _ in range(n)]])
        assert choose(1, links, preference, spread) == tried_all(1, links, preference, spread)


def test_of_many_healthy_ones_are_taken_first() -> None:
    rng = random.Random(6)  # noqa: S311
    for _ in range(50):
        n = rng.randint(EXACT_UP_TO + 1, 64)
        links, count = random_links(rng, n, range(100)), rng.randint(1, n)
        preference = [rng.randint(0, 1) for _ in range(n)]
        chosen = choose(count, links, preference)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == count
        assert sum(preference[i] for i in chosen) == sum(sorted(preference)[:count])
        assert choose(count, links, preference) == chosen


# -- the setting ------------------------------------------------------------------------------------------------------


def granted(node: LaidOutNode) -> list[str]:
    """The one GPU that the next job gets while the first GPU of eight, four a NUMA node, is held."""
    states = [OK, *[OK] * 6, DEGRADED]
    units = [
        UnitLine(uuid(i), i, i, f"0000:{i:02x}:00.0", "H100", i // 4, (1,) * 8, states[i]) for i in range(node.gpus)
    ]
    node.write_verdict(units=tuple(units))
    node.hold([0])
    found = open_node(["--config", str(node.config)])
    assert found.verdict is not None
    return [unit.unit for unit in prolog.take(found, found.verdict, found.owner("sge", "9"), 1, 0.0)]


@pytest.mark.parametrize(("settings", "index"), [("", 1), ("placement: pack\n", 1), ("placement: spread\n", 4)])
def test_the_hook_chooses_as_is_set(tmp_path: Path, settings: str, index: int) -> None:
    assert granted(LaidOutNode(tmp_path, "sge", gpus=8, settings=settings)) == [uuid(index)]


def test_a_hook_conf_of_an_older_release_packs(tmp_path: Path) -> None:
    node = LaidOutNode(tmp_path, "sge", gpus=8, settings="placement: spread\n")
    conf = node.state.read("hook.conf")
    assert "placement=spread\n" in conf
    node.state.replace("hook.conf", conf.replace("placement=spread\n", ""))
    assert granted(node) == [uuid(1)]


def test_another_word_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    config = tmp_path / "config.yaml"
    config.write_text("placement: scatter\n")
    with pytest.raises(ConfigError, match="pack"):
        load(config)


# -- against first-fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", layouts())
def test_jobs_are_linked_no_worse_than_by_first_fit(name: str) -> None:
    node = layouts()[name]
    assert stream(node, pack, jobs=300).quality > stream(node, first_fit, jobs=300).quality
