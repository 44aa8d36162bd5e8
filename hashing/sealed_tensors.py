"""Tensors and one JSON document as bytes: safetensors with the document in the file's metadata.

The document names the format and its version, and carries a hash over every tensor and every other
field, so a change of any byte is refused. Nothing in such bytes is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from hashing.errors import CheckpointError
from hashing.identity import Tensors, content_hash

METADATA_KEY = "nearhit"
HEADER_LENGTH_BYTES = 8

T = TypeVar("T")


def seal_tensors(kind: str, tensors: Tensors, metadata: Mapping[str, object], *, version: int) -> bytes:
    """Serialise tensors and a document of format `kind`; `unseal_tensors` reads them again."""
    document = {**metadata, "format": kind, "format_version": version}
    checksum = content_hash(tensors, document)
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    text = _document_text({**document, "checksum": checksum})
    return save_tensors(contiguous, metadata={METADATA_KEY: text})


def unseal_tensors(content: bytes, *, document: dict[str, Any]) -> Tensors:
    """Return the tensors of `content`, whose `read_document` is `document`; takes the checksum out of it.

    Raises: CheckpointError for tensors that cannot be read, are not finite or not those of the checksum.
    """
    try:
        tensors = load_tensors(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"tensors cannot be read: {error}") from error
    checksum = document.pop("checksum", None)
    try:
        content_checksum = content_hash(tensors, document)
    except ValueError as error:  # a damaged number may be infinite, which is no JSON
        raise CheckpointError(f"metadata cannot be hashed: {error}") from error
    if content_checksum != checksum:
        raise CheckpointError("checksum does not match the content")
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise CheckpointError(f"tensor {name} is not finite")
    return tensors


def read_document(kind: str, content: bytes) -> dict[str, Any]:
    """Return the JSON document from the safetensors header, which that library does not hand out.

    Raises: CheckpointError for truncated or foreign bytes, and another format than `kind`.
    """
    document = header_document(content)
    if document.get("format") != kind:
        raise CheckpointError(f"format is {document.get('format')!r}, expected {kind!r}")
    return document


def header_document(content: bytes) -> dict[str, Any]:
    """Return the JSON document of any format. Raises: CheckpointError."""
    length = int.from_bytes(content[:HEADER_LENGTH_BYTES], "little")
    header = content[HEADER_LENGTH_BYTES : HEADER_LENGTH_BYTES + length]
    if len(content) < HEADER_LENGTH_BYTES or len(header) != length:
        raise CheckpointError("truncated or not a safetensors file")
    if not header.rstrip(b" ").endswith(b"}"):  # JSON would take other white space for the padding
        raise CheckpointError("header is padded with something else than spaces")
    try:
        outer = json.loads(header)
        text = outer["__metadata__"][METADATA_KEY]
        document = json.loads(text)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"header holds no {METADATA_KEY} metadata") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{METADATA_KEY} metadata is not an object")

    written = json.dumps(outer, separators=(",", ":"), ensure_ascii=False).encode()
    if text != _document_text(document) or header.rstrip(b" ") != written:
        raise CheckpointError(f"{METADATA_KEY} metadata is not written as this library writes it")
    return document


def _document_text(document: Mapping[str, Any]) -> str:
    """Write a document in the one way that is accepted."""
    return json.dumps(document, sort_keys=True)


def matrix_of(tensors: Tensors, name: str) -> NDArray[np.float32]:
    """Return the float32 matrix `name`. Raises: CheckpointError where it is missing or something else."""
    if name not in tensors or tensors[name].ndim != 2:
        raise CheckpointError(f"tensor {name} is missing or not a matrix")
    return tensor_of(tensors, name, np.float32, tensors[name].shape)


def tensor_of(tensors: Tensors, name: str, dtype: type[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the tensor `name`. Raises: CheckpointError where it is missing or of another type or shape."""
    tensor = tensors.get(name)
    if tensor is None:
        raise CheckpointError(f"tensor {name} is missing")
    if tensor.dtype != dtype or tensor.shape != shape:
        raise CheckpointError(
            f"tensor {name} is {tensor.dtype}{list(tensor.shape)}, expected {np.dtype(dtype)}{list(shape)}"
        )
    return tensor


def field_of(document: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """Return a field of a document. Raises: CheckpointError where it is missing or not a `kind`."""
    value = document.get(name)
    if not isinstance(value, kind):
        raise CheckpointError(f"metadata field {name} is missing or not of type {kind.__name__}")
    return value
