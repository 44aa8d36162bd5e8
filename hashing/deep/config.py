"""Settings of a training by gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from hashing.config import (
    require_bits,
    require_choice,
    require_int,
    require_positive,
    require_share,
    require_weight,
)
from hashing.errors import ConfigError

TowerKind = Literal["residual", "linear"]
BinarizerKind = Literal["straight_through", "tanh"]

HIDDEN_WIDTH_LIMIT = 8192
BATCH_SIZE_LIMIT = 65_536
EPOCHS_LIMIT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PairConfig:
    """What `train_pairs` needs to know besides the rows and pairs.

    tower: "residual" is a linear path and one hidden layer, "linear" the path alone.
    code_bits: width of the code, 64..1024, a multiple of 64; its prefixes of 64 and 128 bits are trained too.
    hidden_width: units of the hidden layer, 1..8192. A query of 384 dimensions takes 40 us at 384 units.
    dropout, input_dropout: of the hidden layer and of what it reads, in [0, 1).
    threshold: learn a threshold of each bit that is linear in the embedding.
    binarizer: what stands for the stored code in training, "straight_through" or annealed "tanh".
    logistic_weight, info_nce_weight, quantisation_weight, decorrelation_weight: factors of the losses; one of
    the first two is above 0. temperature: of InfoNCE.
    batch_size: pairs a step, 2..65536. epochs: passes at most, 1..1000. patience: passes without a better
    validation AUC before the training stops, 1..1000.
    learning_rate, weight_decay: of AdamW. warmup_share: share of the steps that the rate grows over, in
    [0, 1); it falls linearly from there to 0.
    validation_share: share of the pairs kept from training, in (0, 0.5).
    seed: source of every random draw.

    Raises: ConfigError that names the key.
    """

    tower: TowerKind = "residual"
    code_bits: int = 256
    hidden_width: int = 384
    dropout: float = 0.2
    input_dropout: float = 0.1
    threshold: bool = False
    binarizer: BinarizerKind = "straight_through"
    logistic_weight: float = 1.0
    info_nce_weight: float = 0.3
    quantisation_weight: float = 0.0
    decorrelation_weight: float = 0.0
    temperature: float = 0.1
    batch_size: int = 512
    epochs: int = 10
    patience: int = 3
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    validation_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require_choice("tower", self.tower, choices=get_args(TowerKind))
        require_choice("binarizer", self.binarizer, choices=get_args(BinarizerKind))
        if not isinstance(self.threshold, bool):
            raise ConfigError("threshold", self.threshold, "true or false")
        require_bits("code_bits", self.code_bits)
        require_int("hidden_width", self.hidden_width, low=1, high=HIDDEN_WIDTH_LIMIT)
        require_int("batch_size", self.batch_size, low=2, high=BATCH_SIZE_LIMIT)
        require_int("epochs", self.epochs, low=1, high=EPOCHS_LIMIT)
        require_int("patience", self.patience, low=1, high=EPOCHS_LIMIT)
        require_int("seed", self.seed, low=0, high=2**63 - 1)
        for key in ("dropout", "input_dropout", "warmup_share"):
            require_share(key, getattr(self, key), below=1)
        for key in ("temperature", "learning_rate", "validation_share"):
            require_positive(key, getattr(self, key))
        require_share("validation_share", self.validation_share, below=0.5)
        for key in ("info_nce_weight", "quantisation_weight", "decorrelation_weight", "weight_decay"):
            require_weight(key, getattr(self, key))
        if self.info_nce_weight > 0:
            require_weight("logistic_weight", self.logistic_weight)
        else:
            require_positive("logistic_weight", self.logistic_weight)
