"""Bounds of a share against the sums that define them."""

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing.shares import CONFIDENCE, share_bounds


def _at_least(least: int, of: int, share: float) -> float:
    own = Fraction(share)
    return float(sum(comb(of, k) * own**k * (1 - own) ** (of - k) for k in range(least, of + 1)))


@given(of=st.integers(1, 60), part=st.floats(0, 1))
def test_bounds_are_where_a_count_so_large_or_so_small_is_rare(of: int, part: float) -> None:
    count = round(part * of)
    low, high = share_bounds(count, of)
    assert 0 <= low <= count / of <= high <= 1
    if count:
        assert _at_least(count, of, low) == pytest.approx(1 - CONFIDENCE, abs=1e-6)
    if count < of:
        assert 1 - _at_least(count + 1, of, high) == pytest.approx(1 - CONFIDENCE, abs=1e-6)


def test_no_trial_and_no_mark_say_little() -> None:
    assert share_bounds(0, 0) == (0.0, 1.0)
    assert share_bounds(0, 149)[1] <= 0.02 < share_bounds(0, 148)[1]
    assert share_bounds(5000, 5000) == (pytest.approx(0.05 ** (1 / 5000)), 1.0)
