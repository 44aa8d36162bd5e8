"""What the index hands back per row: also as it was kept before it held texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.payload import (
    TEXT_CHARACTERS,
    is_payload_of,
    known_text,
    pack_payload,
    payload_text,
    unpack_payload,
)

BEFORE_TEXTS = b"\x03\x00\x0a\x00e-1text/plain\x00\x80served"
"""As written by the version that kept no texts."""

ENTRY = st.text(max_size=128)
MEDIA_TYPE = st.text(max_size=255)


@given(entry=ENTRY, content_type=MEDIA_TYPE, response=st.binary(max_size=64), text=st.text(max_size=600))
def test_payload_is_unpacked_as_it_was_packed(
    entry: str, content_type: str, response: bytes, text: str
) -> None:
    packed = pack_payload(entry, content_type, response, text=text)
    assert unpack_payload(packed) == (entry, content_type, response)
    assert payload_text(packed) == known_text(text)


def test_payload_of_before_is_read() -> None:
    assert unpack_payload(BEFORE_TEXTS) == ("e-1", "text/plain", b"\x00\x80served")
    assert payload_text(BEFORE_TEXTS) == ""
    assert pack_payload("e-1", "text/plain", b"\x00\x80served") == BEFORE_TEXTS


def test_largest_parts_fit() -> None:
    entry, media_type, text = "é" * 128, "😀" * 255, "😀" * TEXT_CHARACTERS
    packed = pack_payload(entry, media_type, b"r", text=text)
    assert (unpack_payload(packed), payload_text(packed)) == ((entry, media_type, b"r"), text)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("", ""),
        (" \n\u2003", ""),
        (" a ", " a "),
        ("x" * TEXT_CHARACTERS, "x" * TEXT_CHARACTERS),
        ("x" * (TEXT_CHARACTERS + 1), ""),
    ],
)
def test_blank_and_long_texts_are_unknown(text: str, known: str) -> None:
    assert known_text(text) == known
    assert (pack_payload("e", "", b"", text=text) == pack_payload("e", "", b"")) == (not known)


@given(response=st.binary(max_size=8), text=st.text(min_size=1, max_size=20))
def test_payload_kept_without_text_is_still_the_entry_s(response: bytes, text: str) -> None:
    packed = pack_payload("e", "t", response, text=text)
    assert is_payload_of(packed, packed)
    assert is_payload_of(pack_payload("e", "t", response), packed)
    assert not is_payload_of(pack_payload("e", "t", response + b"x", text=text), packed)
    assert not is_payload_of(pack_payload("e", "t", response, text="other" + text), packed)
    assert not is_payload_of(pack_payload("f", "t", response), packed)
