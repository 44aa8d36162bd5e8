from collections.abc import Mapping

import numpy as np
import pytest

from hashing import Encoder, EncoderConfig, train_encoder
from hashing.radius import PREFIX_BITS
from index import kernels
from index.codes import pack
from service.coding import EncoderSet


@pytest.fixture(scope="module")
def encoders() -> list[Encoder]:
    rows = np.random.default_rng(0).standard_normal((200, 12)).astype(np.float32)
    configs = [EncoderConfig(method="rotation", code_bits=256, seed=seed) for seed in range(2)]
    return [train_encoder(rows, config=config).encoder for config in configs]


def _by_id(encoders: list[Encoder]) -> Mapping[str, Encoder]:
    return {encoder.encoder_id: encoder for encoder in encoders}


def test_hashing_and_index_limit_the_same_prefixes() -> None:
    assert PREFIX_BITS == kernels.PREFIX_BITS


@pytest.mark.parametrize("bit_count", PREFIX_BITS)
def test_leading_bits_are_the_first_words_of_a_code(bit_count: int) -> None:
    bits = np.random.default_rng(1).random((20, 256)) > 0.5
    np.testing.assert_array_equal(pack(bits)[:, : bit_count // 64], pack(bits[:, :bit_count]))


def test_radii_are_those_of_each_encoder(encoders: list[Encoder]) -> None:
    names = [encoder.encoder_id for encoder in encoders]
    radii = EncoderSet(active=encoders[0], by_id=_by_id(encoders)).radii(names, 0.15)
    assert radii == {encoder.encoder_id: encoder.radii(0.15) for encoder in encoders}
    assert [set(limits) for limits in radii.values()] == [{64, 128, 256}] * 2


def test_radii_of_a_trusted_segment_are_those_of_the_active_encoder(encoders: list[Encoder]) -> None:
    active, other = encoders
    pair = (active.encoder_id, other.encoder_id)
    served = EncoderSet(active=active, by_id=_by_id(encoders), trusted=frozenset({pair}))
    assert served.radii([other.encoder_id], 0.2) == {other.encoder_id: active.radii(0.2)}


def test_encoder_that_is_not_served_has_no_radii(encoders: list[Encoder]) -> None:
    assert EncoderSet(active=encoders[0], by_id=_by_id(encoders[:1])).radii(["gone"], 0.2) == {}
