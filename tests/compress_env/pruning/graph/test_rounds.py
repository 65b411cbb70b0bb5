"""The widths that a network is tried on."""

from __future__ import annotations

from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress_env.pruning.graph.rounds import equal_rounds, unequal_rounds

SIZES = st.lists(st.integers(2, 64), min_size=1, max_size=8)


@given(sizes=SIZES)
def test_no_group_ever_gains_a_channel(sizes: list[int]) -> None:
    for course in (equal_rounds(sizes, [sizes] * len(sizes)), unequal_rounds(sizes)):
        for before, after in pairwise([tuple(sizes), *course]):
            assert all(1 <= y <= x for x, y in zip(before, after, strict=True))


@given(sizes=SIZES)
def test_all_groups_that_can_get_each_width_together(sizes: list[int]) -> None:
    course = equal_rounds(sizes, [sizes] * len(sizes))
    assert course[0] == tuple(n - 1 for n in sizes)
    assert course[-1] == (1,) * len(sizes)
    for width in set(sizes) - {1}:
        wider = [i for i, n in enumerate(sizes) if n > width]
        assert any(all(counts[i] == width for i in wider) for counts in course)


@pytest.mark.parametrize("n_groups", [2, 3, 7])
def test_equal_groups_become_unequal_in_both_directions(n_groups: int) -> None:
    course = unequal_rounds([64] * n_groups)
    for i, j in permutations(range(n_groups), 2):
        assert any(counts[i] < counts[j] for counts in course)
