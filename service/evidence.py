"""What one lookup tells once it is judged: the features of its risk, whether it was served, and a sketch of
the query. It travels in the lookup token and stays with the verdict, so any replica can learn from it."""

import hashlib
import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from service.risk import FEATURES

SKETCH_BITS = 256
_VERSION = 1
_SERVED, _WITHHELD = 1, 2
_FIELDS = struct.Struct(f"<BB8s{SKETCH_BITS // 8}s{len(FEATURES)}f")
_MOST_FEATURE = 100.0  # none that `weigh` makes comes near
NO_JUDGE = bytes(8)
NO_SKETCH = bytes(SKETCH_BITS // 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Of a lookup that found a candidate.

    was_served: its answer went out. is_withheld: it would have, but the category explores or is in shadow, or
    the caller asked for a refresh. judge: see `judge_of`. sketch: see `sketch_of`, NO_SKETCH where the
    query's vector is not known. features: of `weigh`; empty where the category learns no rule.
    """

    was_served: bool
    is_withheld: bool = False
    judge: bytes = NO_JUDGE
    sketch: bytes
    features: tuple[float, ...] = ()


def pack_evidence(evidence: Evidence) -> bytes:
    """Fixed-size bytes."""
    flags = evidence.was_served * _SERVED | evidence.is_withheld * _WITHHELD
    features = evidence.features or (0.0,) * len(FEATURES)
    return _FIELDS.pack(_VERSION, flags, evidence.judge, evidence.sketch, *features)


def unpack_evidence(packed: bytes) -> Evidence | None:
    """What `pack_evidence` packed; None for what another version did, or is damaged: it tells nothing."""
    if len(packed) != _FIELDS.size or packed[0] != _VERSION:
        return None
    _, flags, judge, sketch, *features = _FIELDS.unpack(packed)
    if not all(abs(feature) <= _MOST_FEATURE for feature in features):  # nor NaN
        return None
    return Evidence(
        was_served=bool(flags & _SERVED),
        is_withheld=bool(flags & _WITHHELD),
        judge=judge,
        sketch=sketch,
        # The first feature is always 1.
        features=tuple(features) if features[0] else (),
    )


def judge_of(space: str, verifier_id: str) -> bytes:
    """Eight bytes that tell whose distances and whose word features hold from others: those of another
    embedder's space, or of another verifier, mean something else. verifier_id: empty where none was asked."""
    return hashlib.blake2b(f"{space}\0{verifier_id}".encode(), digest_size=8).digest()


def sketch_of(vector: NDArray[np.float32]) -> bytes:
    """SKETCH_BITS signs of fixed random projections of a vector, float32 [dim]: two vectors at an angle a
    differ in about a / pi of them (Charikar, STOC 2002). Unlike codes they are the same under every
    encoder."""
    return np.packbits(vector @ _projections(len(vector)) > 0).tobytes()


@lru_cache(maxsize=8)
def _projections(dim: int) -> NDArray[np.float32]:
    """float32 [dim, SKETCH_BITS]; the same for a dim in every process."""
    rng = np.random.Generator(np.random.PCG64(dim))
    return rng.standard_normal((dim, SKETCH_BITS), dtype=np.float32)
