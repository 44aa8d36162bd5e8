"""Learn: embeddings -> bits. Training and serving need numpy only."""

from hashing.analytic import LabelState
from hashing.checkpoint import dump_encoder, dump_state, load_encoder, load_state
from hashing.class_state import ClassState
from hashing.config import EncoderConfig
from hashing.crossmodal import TrainedCrossModal, train_crossmodal
from hashing.crossmodal_config import CrossModalConfig, KernelSettings
from hashing.errors import (
    CheckpointError,
    ConfigError,
    DimensionError,
    EmbeddingsError,
    HashingError,
    NoCrossPartError,
    NoLabelPartError,
    NothingToLearnError,
    StateMismatchError,
    TrainingDataError,
    UnknownLabelError,
    UnknownModalityError,
)
from hashing.inference import Encoder
from hashing.label_gate import LabelGateReport, LabelledRows, evaluate_label_update
from hashing.label_part import LearnedState, LearnedStates, empty_state
from hashing.learned_states import dump_states, load_states
from hashing.lifelong import UpdateReport, UpdateResult, renew_encoder, update_labels
from hashing.trainer import TrainedEncoder, train_encoder

__all__ = [
    "CheckpointError",
    "ClassState",
    "ConfigError",
    "CrossModalConfig",
    "DimensionError",
    "EmbeddingsError",
    "Encoder",
    "EncoderConfig",
    "HashingError",
    "KernelSettings",
    "LabelGateReport",
    "LabelState",
    "LabelledRows",
    "LearnedState",
    "LearnedStates",
    "NoCrossPartError",
    "NoLabelPartError",
    "NothingToLearnError",
    "StateMismatchError",
    "TrainedCrossModal",
    "TrainedEncoder",
    "TrainingDataError",
    "UnknownLabelError",
    "UnknownModalityError",
    "UpdateReport",
    "UpdateResult",
    "dump_encoder",
    "dump_state",
    "dump_states",
    "empty_state",
    "evaluate_label_update",
    "load_encoder",
    "load_state",
    "load_states",
    "renew_encoder",
    "train_crossmodal",
    "train_encoder",
    "update_labels",
]
