"""What a start does side by side, or in a faster way, gives what the plain way gives."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.builder import build_generation
from index.config import IndexConfig
from index.kernels import quantise
from index.manifest import open_generation
from index.rows import NEVER, Rows, SegmentKey
from index.sealed_segment import QUANTISED_ROWS, SealedSegment

DIM = 16
CONFIG = IndexConfig(code_bits=64, label_bits=64)


def make_rows(
    first_id: int, count: int, *, fingerprints: NDArray[np.uint64] | None = None, seed: int = 0
) -> Rows:
    """Rows with random vectors and codes."""
    draw = np.random.default_rng(seed)
    vectors = draw.standard_normal((count, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    drawn = draw.integers(1, 2**63, (count, 4)).astype(np.uint64)
    return Rows(
        entry_ids=np.arange(first_id, first_id + count),
        vectors=vectors.astype(np.float16),
        codes=drawn[:, :1].copy(),
        label_codes=drawn[:, 1:2].copy(),
        label_mask=np.ones(count, dtype=np.bool_),
        scopes=np.zeros(count, dtype=np.uint64),
        fingerprints=drawn[:, 2:].copy() if fingerprints is None else fingerprints,
        expire_times=np.full(count, NEVER),
        payloads=[b"%d" % number for number in range(count)],
    )


@pytest.mark.parametrize("threads", [1, 4])
def test_a_generation_loaded_by_several_threads_is_the_same(tmp_path: Path, threads: int) -> None:
    batches = [
        (SegmentKey(category, "text", "e"), make_rows(first, count, seed=first))
        for category, first, count in ((1, 0, 2 * QUANTISED_ROWS + 7), (2, 10_000, 3), (3, 20_000, 600))
    ]
    report = build_generation(
        tmp_path,
        cache="faq",
        config=CONFIG,
        batches=batches,
        watermark=1,
        with_graph=False,
        memory_limit_bytes=2**26,
    )
    index = open_generation(tmp_path, report.generation, config=CONFIG, threads=threads)
    assert len(index.segment_views()) == len(batches)
    for key, rows in batches:
        view = next(view for held, view in index.segment_views() if held == key)
        plain = SealedSegment(key, rows)
        expected = plain.view().table
        assert view.table is not None and view.table.quantised is not None and expected is not None
        assert np.array_equal(view.table.quantised, quantise(rows.vectors))
        assert np.array_equal(view.table.blocks, expected.blocks)
        for offset in (0, len(rows) // 2, len(rows) - 1):
            words = rows.fingerprints[offset].tolist()
            found = index.find_fingerprint(key.partition, (words[0], words[1]), now_ms=0)
            assert found is not None
            assert (found.entry_id, found.payload) == (rows.entry_ids[offset], rows.payloads[offset])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=40))
def test_the_newest_row_of_a_fingerprint_is_found_among_those_that_share_a_word(
    keys: list[tuple[int, int]],
) -> None:
    fingerprints = np.array(keys, dtype=np.uint64).reshape(len(keys), 2)
    key = SegmentKey(category_id=1, modality="text", encoder_id="e")
    segment = SealedSegment(key, make_rows(0, len(keys), fingerprints=fingerprints))
    newest = {pair: offset for offset, pair in enumerate(keys) if pair != (0, 0)}
    for pair in [(first, second) for first in range(4) for second in range(4)]:
        if pair != (0, 0):
            assert segment.find_fingerprint(pair, now_ms=0) == newest.get(pair)
    everything = segment.rows(np.arange(len(keys)))
    assert np.array_equal(everything.fingerprints, fingerprints)
