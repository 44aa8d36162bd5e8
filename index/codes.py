"""Bits <-> packed words. The bit order is decided here; only the compiled kernels know it too.

Bit i of a code is bit i % 64, least significant first, of word i // 64. Padding bits are 0.
"""

import numpy as np
from numpy.typing import NDArray

from index.errors import DimensionError

WORD_BITS = 64
WORD_BYTES = 8


def word_count(bit_count: int) -> int:
    """Count the uint64 words of a code of `bit_count` bits."""
    return -(-bit_count // WORD_BITS)


def pack(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Pack bits into words.

    bits: bool [n, b]. Returns uint64 [n, ceil(b / 64)], padding bits 0. Raises: DimensionError.
    """
    if bits.ndim != 2 or bits.dtype != np.bool_:
        raise DimensionError("bits", expected="bool [n, b]", got=f"{bits.dtype} {list(bits.shape)}")
    row_count, bit_count = bits.shape
    words = word_count(bit_count)
    padded = np.zeros((row_count, words * WORD_BYTES), dtype=np.uint8)
    packed = np.packbits(bits, axis=1, bitorder="little")  # [n, ceil(b / 8)]
    padded[:, : packed.shape[1]] = packed
    return padded.view("<u8").astype(np.uint64)


def unpack(codes: NDArray[np.uint64], *, bit_count: int) -> NDArray[np.bool_]:
    """Unpack words into bits; the inverse of `pack`.

    codes: uint64 [n, ceil(bit_count / 64)]. Returns bool [n, bit_count]. Raises: DimensionError.
    """
    if codes.ndim != 2 or codes.shape[1] != word_count(bit_count):
        raise DimensionError("codes", expected=f"[n, {word_count(bit_count)}]", got=f"{list(codes.shape)}")
    bits = np.unpackbits(code_bytes(codes), axis=1, count=bit_count, bitorder="little")
    return bits.astype(np.bool_)


def code_bytes(codes: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Bytes of codes in bit order: bit i is bit i % 8 of byte i // 8.

    codes: uint64 [n, w]. Returns uint8 [n, 8 w], a view where the machine is little-endian.
    """
    return np.ascontiguousarray(codes, dtype="<u8").view(np.uint8)


def padding_is_zero(codes: NDArray[np.uint64], *, bit_count: int) -> bool:
    """Tell whether no bit at or beyond `bit_count` is set. codes: uint64 [n, ceil(bit_count / 64)]."""
    used = bit_count % WORD_BITS
    if used == 0 or codes.size == 0:
        return True
    return not np.any(codes[:, -1] >> np.uint64(used))
