"""What an encoder has learned labels with, of all its modalities, as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from hashing.checkpoint import FORMAT_VERSION, STATE_FORMAT, dump_state, load_sealed, load_state
from hashing.errors import CheckpointError
from hashing.inference import Encoder
from hashing.label_part import LearnedState, LearnedStates
from hashing.sealed_tensors import field_of, header_document, seal_tensors, tensor_of

STATES_FORMAT = "nearhit-label-states"


def dump_states(states: LearnedStates) -> bytes | None:
    """Serialise the states of an encoder's modalities, each as `dump_state` does; None for none."""
    if not states:
        return None
    tensors = {
        _tensor_name(modality): np.frombuffer(dump_state(state), dtype=np.uint8)
        for modality, state in states.items()
    }
    return seal_tensors(STATES_FORMAT, tensors, {"modalities": list(states)}, version=FORMAT_VERSION)


def load_states(content: bytes | None, *, encoder: Encoder) -> dict[str, LearnedState]:
    """Read what `dump_states` wrote, modality -> state; of one state alone, as it was written before, the
    modality is that of the encoder's label part. None: there are none.

    Raises: CheckpointError as `load_state`.
    """
    if content is None:
        return {}
    if header_document(content).get("format") == STATE_FORMAT:
        return {modality: load_state(content) for modality in _sole_modality(encoder)}
    tensors, document = load_sealed(STATES_FORMAT, content)
    states: dict[str, LearnedState] = {}
    for modality in _named(document):
        name = _tensor_name(modality)
        shape = tensors[name].shape if name in tensors else ()
        states[modality] = load_state(tensor_of(tensors, name, np.uint8, shape).tobytes())
    return states


def kept_modalities(content: bytes | None, *, encoder: Encoder) -> tuple[str, ...]:
    """Return the modalities whose states `load_states` would read. Raises: CheckpointError.

    content: may end after the header, whose length in bytes its first HEADER_LENGTH_BYTES say.
    """
    if content is None:
        return ()
    document = header_document(content)
    if document.get("format") == STATE_FORMAT:
        return _sole_modality(encoder)
    return _named(document)


def _named(document: dict[str, Any]) -> tuple[str, ...]:
    names = field_of(document, "modalities", list)
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise CheckpointError("modalities are not distinct names")
    return tuple(names)


def _sole_modality(encoder: Encoder) -> tuple[str, ...]:
    return (encoder.label_modalities or tuple(encoder.projections))[:1]


def _tensor_name(modality: object) -> str:
    return f"state.{modality}"
