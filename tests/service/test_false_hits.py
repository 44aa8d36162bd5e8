"""The memory of false hits and the sketches that it is kept by, against angles and a loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.evidence import SKETCH_BITS, sketch_of
from service.false_hits import KEPT, NEAR_BITS, STRICTER, FalseHit, FalseHits, is_near

DIM = 64
seeds = st.integers(0, 2**32 - 1)


def at_angle(seed: int, angle: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two unit vectors at this angle."""
    rows = np.linalg.qr(np.random.default_rng(seed).standard_normal((DIM, 2)))[0].T
    first, across = rows.astype(np.float32)
    return first, np.float32(np.cos(angle)) * first + np.float32(np.sin(angle)) * across


def differing_bits(first: bytes, second: bytes) -> int:
    """Counted one by one."""
    return sum((a ^ b).bit_count() for a, b in zip(first, second, strict=True))


def flipped(sketch: bytes, count: int) -> bytes:
    """With so many other bits."""
    return (int.from_bytes(sketch, "little") ^ ((1 << count) - 1)).to_bytes(len(sketch), "little")


def some_sketch(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(SKETCH_BITS // 8)


@given(seed=seeds, angle=st.floats(0.0, np.pi))
def test_sketches_differ_in_a_share_of_bits_that_tells_the_angle(seed: int, angle: float) -> None:
    bits = differing_bits(*map(sketch_of, at_angle(seed, angle)))
    share = angle / np.pi
    spread = np.sqrt(share * (1 - share) / SKETCH_BITS)
    assert abs(bits / SKETCH_BITS - share) <= 6 * spread + 1 / SKETCH_BITS


@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_a_sketch_is_the_same_for_any_length(seed: int, scale: float) -> None:
    vector, _ = at_angle(seed, 0.1)
    assert sketch_of(vector * np.float32(scale)) == sketch_of(vector)
    assert len(sketch_of(vector)) * 8 == SKETCH_BITS


def test_a_sketch_is_the_same_in_every_process() -> None:
    assert sketch_of(np.eye(DIM, dtype=np.float32)[0]).hex()[:16] == "06e04c06790f72f2"


@given(seed=seeds, count=st.integers(0, SKETCH_BITS))
def test_near_is_up_to_so_many_bits(seed: int, count: int) -> None:
    first = some_sketch(seed)
    second = flipped(first, count)
    assert is_near(first, second) == is_near(second, first) == (count <= NEAR_BITS)
    memory = FalseHits.of([FalseHit(first, 7)]).near(second)
    assert (memory.entry_ids, memory.strictness) == (
        (frozenset({7}), STRICTER) if count <= NEAR_BITS else (frozenset(), 1.0)
    )


@settings(max_examples=50)
@given(seed=seeds, count=st.integers(0, 40))
def test_what_is_near_is_what_a_loop_finds(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    query = some_sketch(seed)
    hits = [FalseHit(flipped(query, int(rng.integers(20, 60))), int(rng.integers(10))) for _ in range(count)]
    expected = {hit.entry_id for hit in hits if differing_bits(hit.sketch, query) <= NEAR_BITS}
    found = FalseHits.of(hits)
    assert len(found) == count
    assert found.near(query).entry_ids == expected
    assert (found.near(query).strictness < 1.0) == bool(expected)


def test_the_latest_are_kept() -> None:
    hits = [FalseHit(some_sketch(i), i) for i in range(KEPT + 10)]
    found = FalseHits.of(hits)
    assert len(found) == KEPT
    assert not found.near(hits[9].sketch).entry_ids and found.near(hits[10].sketch).entry_ids == {10}
    assert found.near(hits[-1].sketch).entry_ids == {KEPT + 9}


def test_near_is_about_a_cosine_distance_of_an_eighth() -> None:
    near = [is_near(*map(sketch_of, at_angle(seed, np.arccos(1 - 0.08)))) for seed in range(200)]
    far = [is_near(*map(sketch_of, at_angle(seed, np.arccos(1 - 0.18)))) for seed in range(200)]
    assert np.mean(near) > 0.85 and np.mean(far) < 0.15


def test_the_empty_memory_holds_nothing() -> None:
    assert FalseHits.of(()).near(some_sketch(0)) == (frozenset(), 1.0)


@pytest.mark.parametrize("dim", [1, 384])
def test_any_dimension_has_a_sketch(dim: int) -> None:
    assert len(sketch_of(np.ones(dim, dtype=np.float32))) * 8 == SKETCH_BITS
