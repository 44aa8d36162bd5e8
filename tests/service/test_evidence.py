"""What travels in a lookup token and stays with a verdict: packed, read again, refused where damaged."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.evidence import NO_JUDGE, NO_SKETCH, Evidence, judge_of, pack_evidence, unpack_evidence
from service.risk import FEATURES
from service.tokens import LookupToken, read_token, sign_token

KEY = bytes(32)
features = st.one_of(
    st.just(()),
    st.lists(st.floats(-50, 50, width=32), min_size=len(FEATURES) - 1, max_size=len(FEATURES) - 1).map(
        lambda others: (1.0, *others)
    ),
)
some_evidence = st.builds(
    Evidence,
    was_served=st.booleans(),
    is_withheld=st.booleans(),
    judge=st.binary(min_size=8, max_size=8),
    sketch=st.binary(min_size=32, max_size=32),
    features=features,
)
PLAIN = Evidence(was_served=True, sketch=NO_SKETCH, features=(1.0,) * len(FEATURES))


@given(some_evidence)
def test_what_is_packed_is_read_again(evidence: Evidence) -> None:
    packed = pack_evidence(evidence)
    assert unpack_evidence(packed) == evidence
    assert len(packed) == len(pack_evidence(PLAIN)) < 256  # what a token can hold


@given(some_evidence)
def test_evidence_survives_its_token(evidence: Evidence) -> None:
    token = LookupToken(
        cache_id=1,
        category_id=2,
        entry_id=3,
        seq=4,
        time_ns=5,
        distance=0.5,
        threshold=0.25,
        generation="generation",
        query_code=b"code5678",
        evidence=pack_evidence(evidence),
    )
    assert read_token(sign_token(token, KEY), KEY) == token


@pytest.mark.parametrize("packed", [b"", b"\x01", pack_evidence(PLAIN)[:-1], pack_evidence(PLAIN) + b"\0"])
def test_other_sizes_tell_nothing(packed: bytes) -> None:
    assert unpack_evidence(packed) is None


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_tells_nothing(version: int) -> None:
    assert unpack_evidence(bytes([version]) + pack_evidence(PLAIN)[1:]) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 101.0, -1e30])
@pytest.mark.parametrize("place", [0, 1, len(FEATURES) - 1])
def test_features_that_no_lookup_has_tell_nothing(value: float, place: int) -> None:
    packed = bytearray(pack_evidence(PLAIN))
    start = len(packed) - 4 * (len(FEATURES) - place)
    packed[start : start + 4] = struct.pack("<f", value)
    assert unpack_evidence(bytes(packed)) is None


def test_spaces_and_verifiers_are_told_from_each_other() -> None:
    named = [("text", ""), ("text:2", ""), ("text", "a"), ("text", "b"), ("texta", ""), ("text", "a\0")]
    judges = {judge_of(*one) for one in named}
    assert len(judges) == len(named) and NO_JUDGE not in judges
    assert all(len(judge) == len(NO_JUDGE) for judge in judges)
