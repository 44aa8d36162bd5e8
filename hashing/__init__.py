"""Learn: embeddings -> bits. Training and serving need numpy only."""

from hashing.analytic import LabelState
from hashing.checkpoint import dump_encoder, dump_state, load_encoder, load_state
from hashing.config import EncoderConfig
from hashing.errors import (
    CheckpointError,
    ConfigError,
    DimensionError,
    EmbeddingsError,
    HashingError,
    NoLabelPartError,
    NothingToLearnError,
    StateMismatchError,
    TrainingDataError,
    UnknownLabelError,
    UnknownModalityError,
)
from hashing.inference import Encoder
from hashing.lifelong import (
    GateReport,
    LabelledRows,
    UpdateReport,
    UpdateResult,
    evaluate_update,
    renew_encoder,
    update_labels,
)
from hashing.trainer import TrainedEncoder, train_encoder

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DimensionError",
    "EmbeddingsError",
    "Encoder",
    "EncoderConfig",
    "GateReport",
    "HashingError",
    "LabelState",
    "LabelledRows",
    "NoLabelPartError",
    "NothingToLearnError",
    "StateMismatchError",
    "TrainedEncoder",
    "TrainingDataError",
    "UnknownLabelError",
    "UnknownModalityError",
    "UpdateReport",
    "UpdateResult",
    "dump_encoder",
    "dump_state",
    "evaluate_update",
    "load_encoder",
    "load_state",
    "renew_encoder",
    "train_encoder",
    "update_labels",
]
