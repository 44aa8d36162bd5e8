import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from index import DimensionError, pack, unpack, word_count
from index.codes import padding_is_zero

BITS = hnp.arrays(np.bool_, st.tuples(st.integers(0, 5), st.integers(1, 200)))


@given(BITS)
def test_unpack_inverts_pack(bits):
    assert np.array_equal(unpack(pack(bits), bit_count=bits.shape[1]), bits)


@given(BITS)
def test_padding_bits_are_zero(bits):
    codes = pack(bits)
    assert codes.shape == (bits.shape[0], word_count(bits.shape[1]))
    assert sum(int(word).bit_count() for word in codes.ravel()) == bits.sum()


@pytest.mark.parametrize("bit", [0, 1, 63, 64, 69])
def test_bit_i_is_bit_i_mod_64_of_word_i_div_64(bit):
    bits = np.zeros((1, 70), dtype=np.bool_)
    bits[0, bit] = True
    expected = [0, 0]
    expected[bit // 64] = 1 << bit % 64
    assert pack(bits).tolist() == [expected]


@pytest.mark.parametrize(("bit_count", "words"), [(0, 0), (1, 1), (64, 1), (65, 2), (1024, 16)])
def test_word_count_rounds_up(bit_count, words):
    assert word_count(bit_count) == words


def test_set_padding_bit_is_seen():
    codes = np.array([[0, 0], [0, 1 << 6]], dtype=np.uint64)
    assert not padding_is_zero(codes, bit_count=70)
    assert padding_is_zero(codes, bit_count=71)


def test_pack_refuses_other_than_bool():
    with pytest.raises(DimensionError, match="bits"):
        pack(np.zeros((2, 64), dtype=np.uint8))


def test_unpack_refuses_wrong_word_count():
    with pytest.raises(DimensionError, match="codes"):
        unpack(np.zeros((2, 1), dtype=np.uint64), bit_count=65)
