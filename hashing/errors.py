"""Errors of the hashing package.

    HashingError
    +-- ConfigError           a setting is out of its range; names the key
    +-- EmbeddingsError       an array is not what an encoder can read
    |   +-- DimensionError    rows have another width than the model
    +-- TrainingDataError     the training rows or labels cannot be learned from
    |   +-- NothingToLearnError   an update without any labelled row
    +-- UnknownModalityError  the encoder has no projection for the modality
    +-- UnknownLabelError     a label has no class code
    +-- NoLabelPartError      the encoder was trained without labels
    +-- NoCrossPartError      the encoder cannot search from the one modality to the other
    +-- StateMismatchError    a label state belongs to another encoder
    +-- ShiftStateError       saved numbers are no shift reference, or no monitor of this one
    +-- CheckpointError       bytes are not a checkpoint that this version can trust
    +-- BackboneError         a folder holds no text model that a tower can stand on

Each error keeps its values as attributes.
"""

from __future__ import annotations

from collections.abc import Sequence


class HashingError(Exception):
    """Base of every error that this package raises for a caller's or the world's mistake."""


class ConfigError(HashingError):
    """A setting is out of its range."""

    def __init__(self, key: str, value: object, requirement: str) -> None:
        super().__init__(f"{key} must be {requirement}, got {value!r}")
        self.key = key
        self.value = value
        self.requirement = requirement


class EmbeddingsError(HashingError):
    """An array is not a finite floating-point matrix."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DimensionError(EmbeddingsError):
    """Rows have another width than the model."""

    def __init__(self, *, expected: int, got: int) -> None:
        super().__init__(f"embeddings must have {expected} dimensions, got {got}")
        self.expected = expected
        self.got = got


class TrainingDataError(HashingError):
    """The training rows or labels cannot be learned from."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NothingToLearnError(TrainingDataError):
    """An update holds no labelled row."""

    def __init__(self, *, row_count: int) -> None:
        super().__init__(f"without labels there is nothing to learn: none of {row_count} rows has a label")
        self.row_count = row_count


class UnknownModalityError(HashingError):
    """The encoder has no projection for the modality."""

    def __init__(self, modality: str, *, known: Sequence[str]) -> None:
        super().__init__(f"unknown modality {modality!r}, the encoder has {', '.join(known)}")
        self.modality = modality
        self.known = tuple(known)


class UnknownLabelError(HashingError):
    """A label has no class code."""

    def __init__(self, label: str, *, known_count: int) -> None:
        super().__init__(f"label {label!r} has no class code among the {known_count} issued")
        self.label = label
        self.known_count = known_count


class NoLabelPartError(HashingError):
    """The encoder was trained without labels."""

    def __init__(self, encoder_id: str) -> None:
        super().__init__(f"encoder {encoder_id} has no label part")
        self.encoder_id = encoder_id


class NoCrossPartError(HashingError):
    """The encoder cannot search from the one modality to the other."""

    def __init__(self, modality: str, *, target: str) -> None:
        super().__init__(f"the encoder has learned no queries of modality {modality!r} against {target!r}")
        self.modality = modality
        self.target = target


class StateMismatchError(HashingError):
    """A label state belongs to another encoder."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the label state does not belong to the encoder: {reason}")
        self.reason = reason


class ShiftStateError(HashingError):
    """Saved numbers are no shift reference, or no state of a monitor of this one."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class CheckpointError(HashingError):
    """Bytes are not a checkpoint that this version can trust."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"checkpoint refused: {reason}")
        self.reason = reason


class BackboneError(HashingError):
    """A folder holds no text model that a tower can stand on."""

    def __init__(self, folder: str, reason: str) -> None:
        super().__init__(f"no BERT model can be read from {folder}: {reason}")
        self.folder = folder
        self.reason = reason
