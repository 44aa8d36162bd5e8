"""What the index keeps per row and hands back ready to serve: entry id, media type, response."""

import struct
from typing import NamedTuple

_HEADER = struct.Struct("<HH")


class Payload(NamedTuple):
    """The parts of one row's payload."""

    entry: str
    content_type: str
    response: bytes


def pack_payload(entry: str, content_type: str, response: bytes) -> bytes:
    """Both strings' lengths as uint16, the strings in UTF-8, then the response."""
    name, media_type = entry.encode(), content_type.encode()
    return _HEADER.pack(len(name), len(media_type)) + name + media_type + response


def unpack_payload(payload: bytes) -> Payload:
    """The inverse of `pack_payload`."""
    name_size, type_size = _HEADER.unpack_from(payload)
    name_end = _HEADER.size + name_size
    type_end = name_end + type_size
    return Payload(
        payload[_HEADER.size : name_end].decode(), payload[name_end:type_end].decode(), payload[type_end:]
    )
