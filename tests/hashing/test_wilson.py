"""Bounds of a share against the equation that defines them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing.wilson import ONE_SIDED_95, wilson_bounds


@given(of=st.integers(1, 10**6), share=st.floats(0, 1))
def test_bounds_are_where_the_count_lies_so_many_deviations_off(of: int, share: float) -> None:
    count = round(share * of)
    low, high = wilson_bounds(count, of)
    assert 0 <= low <= count / of + 1e-12 and count / of - 1e-12 <= high <= 1
    for bound in (low, high):
        off = (count / of - bound) ** 2
        assert off == pytest.approx(ONE_SIDED_95**2 * bound * (1 - bound) / of, rel=1e-6, abs=1e-12)


def test_no_trial_says_nothing() -> None:
    assert wilson_bounds(0, 0) == (0.0, 1.0)
    assert wilson_bounds(0, 300)[1] == pytest.approx(0.00894, abs=1e-5)
