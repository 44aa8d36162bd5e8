"""False-hit memory: where wrong answers were served lately, the bar is higher.

A query near one that got a wrong answer does not get that entry again, unless it is its very request, and any
other entry there only well within what the category allows; until the entry is judged right near there. After
Zhu et al., ReLoop2: Building Self-Adaptive Recommendation Models via Responsive Error Compensation Loop, KDD
2023, with a memory of sketches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.evidence import SKETCH_BITS

KEPT = 1_024
"""Latest wrong answers that are remembered of a category."""

NEAR_BITS = 40
"""Of a sketch's bits: queries that differ in at most so many are near, about a cosine distance of 0.12."""

STRICTER = 0.5
"""What is left of threshold and risk limit near a false hit."""


class FalseHit(NamedTuple):
    """One wrong answer. sketch: of the query. entry_id: row id of what was served."""

    sketch: bytes
    entry_id: int


def is_near(first: bytes, second: bytes) -> bool:
    """Whether two sketches are of queries that are near each other."""
    bits = int.from_bytes(first, "little") ^ int.from_bytes(second, "little")
    return bits.bit_count() <= NEAR_BITS


class Memory(NamedTuple):
    """What is remembered near a query. entry_ids: not to be served. strictness: what remains of the bar."""

    entry_ids: frozenset[int]
    strictness: float


NOTHING = Memory(frozenset(), 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class FalseHits:
    """Of one category. sketches: uint64 [words, n]; entry_ids: of what was served, int64 [n]."""

    sketches: NDArray[np.uint64]
    entry_ids: NDArray[np.int64]

    @classmethod
    def of(cls, hits: Sequence[FalseHit]) -> "FalseHits":
        """The memory of these, of which the last KEPT stay."""
        kept = hits[-KEPT:]
        words = np.frombuffer(b"".join(hit.sketch for hit in kept), dtype=np.uint64)
        return cls(
            np.ascontiguousarray(words.reshape(len(kept), SKETCH_BITS // 64).T),
            np.array([hit.entry_id for hit in kept], dtype=np.int64),
        )

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self.entry_ids)

    def near(self, sketch: bytes) -> Memory:
        """What is remembered near a query's sketch."""
        if not len(self):
            return NOTHING
        bits = np.zeros(len(self), dtype=np.uint16)
        for words, word in zip(self.sketches, np.frombuffer(sketch, dtype=np.uint64), strict=True):
            bits += np.bitwise_count(words ^ word)
        if bits.min() > NEAR_BITS:
            return NOTHING
        return Memory(frozenset(self.entry_ids[bits <= NEAR_BITS].tolist()), STRICTER)
